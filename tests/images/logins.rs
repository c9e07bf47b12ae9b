//! Names and passwords at registries: what `login` and `logout` do to the files in which users keep them.

use std::fs;

use serde_json::{Value, json};
use support::cli::{Place, is_root};

use super::faulty::{Fault, Faulty};
use super::lab::Lab;

/// A registry that lets everybody in.
fn open_door() -> Faulty {
    Faulty::new(1, |_, _| Fault::Answer("200 OK", String::new(), "{}"))
}

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_file_that_may_not_be_read_is_told_and_stays() {
    if !is_root() {
        support::skip!("root reads everything, and the user is made by root");
    }
    let place = Place::of_user();
    let door = open_door();
    let text = r#"{"auths":{"a.io":{"auth":"eDp5"}}}"#;
    // The directory is the user's, so that the file could be replaced.
    fs::create_dir_all(place.at(".config/containers")).unwrap();
    fs::write(place.at(".config/containers/auth.json"), text).unwrap();
    place.sh("chown -R --reference=. .config && chown root .config/containers/auth.json && chmod 600 .config/containers/auth.json");
    let login =
        format!("HOME=$PWD XDG_RUNTIME_DIR= ./unionmount login -u anna -p secret localhost:{}", door.port);
    place.sh_as_user(&login).refused(1, &["auth.json: cannot be read", "Permission denied"]);
    assert_eq!(fs::read_to_string(place.at(".config/containers/auth.json")).unwrap(), text);
    // Of many that are looked at, another user's is passed over: a runtime directory that su left in the environment.
    place.sh("mkdir -m 700 run && chown root run");
    let logout = "HOME=$PWD/home XDG_RUNTIME_DIR=$PWD/run ./unionmount logout a.io";
    let passed_over = place.sh_as_user(logout);
    assert!(
        passed_over.err.contains("run/containers/auth.json: cannot be read, and is passed over"),
        "{passed_over:?}"
    );
    assert!(passed_over.err.ends_with("a.io: you are not logged in there\n"), "{passed_over:?}");
    let named = "./unionmount logout --authfile .config/containers/auth.json a.io";
    place.sh_as_user(named).refused(1, &["auth.json: cannot be read"]);
}

#[test]
fn a_helper_is_told_to_forget() {
    let lab = Lab::new();
    // One that keeps what it is told in a file, as a keyring would.
    lab.write(
        "bin/docker-credential-lab",
        br#"#!/bin/sh
read -r line
case $1 in
store) printf '%s\n' "$line" > kept ;;
get) cat kept 2> /dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) printf '%s\n' "$line" > erased; rm kept ;;
esac
"#,
    );
    lab.out("chmod 755 bin/docker-credential-lab");
    let door = open_door();
    let host = format!("localhost:{}", door.port);
    let run = |verb: &str| {
        lab.sh(&format!(
            "export PATH=$PWD/bin:$PATH HOME=$PWD REGISTRY_AUTH_FILE=$PWD/auth.json CONTAINERS_REGISTRIES_CONF=$PWD/none
             $UM {verb} {host}"
        ))
    };
    let stores = |stores: Value| lab.write("auth.json", stores.to_string().as_bytes());
    for store in [json!({ "credsStore": "lab" }), json!({ "credHelpers": { &host: "lab" } })] {
        stores(store.clone());
        run("login -u anna -p secret").ok();
        assert!(
            read(&lab.at("kept"))["Secret"] == "secret"
                && read(&lab.at("auth.json"))["auths"][&host] == json!({})
        );
        // As podman leaves the file, and as it is when the user has copied it: nothing of the host but the helper.
        stores(store.clone());
        run("logout").ok();
        assert_eq!(fs::read_to_string(lab.at("erased")).unwrap(), host.clone() + "\n");
        assert!(!lab.at("kept").exists());
        run("logout").refused(1, &["you are not logged in there"]);
    }
}

#[test]
fn logging_in_goes_by_registries_conf() {
    let lab = Lab::new();
    let door = open_door();
    let host = format!("localhost:{}", door.port);
    let login = |conf: &str| {
        lab.write("registries.conf", conf.as_bytes());
        lab.sh(&format!(
            "export HOME=$PWD REGISTRY_AUTH_FILE=$PWD/auth.json CONTAINERS_REGISTRIES_CONF=$PWD/registries.conf
             $UM login -u anna -p secret {host}"
        ))
    };
    login(&format!("[[registry]]\nlocation = \"{host}\"\nblocked = true\n"))
        .refused(1, &["is blocked by registries.conf"]);
    assert_eq!(door.seen(), Vec::<String>::new());
    login("").ok();
    assert_eq!(read(&lab.at("auth.json"))["auths"].as_object().unwrap().len(), 1);
}
