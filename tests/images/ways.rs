//! Ways to a registry and on from there: redirects, token servers and proxies, and who is told what on them.

use support::needs_program;

use super::faulty::{Fault, Faulty};
use super::lab::Lab;
use super::registry::{Registry, named};

fn leads_to(url: String) -> Fault {
    Fault::Answer("307 There", format!("location: {url}\r\n"), "")
}

#[test]
fn where_blobs_lie_nobody_is_told_who_asks() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "x:1", 1000);
    lab.forget_all();
    // Where the blobs lie, the first that is asked for asks in turn who it is, and for a password at a place of its own.
    let thief = Faulty::new(1, |_, _| Fault::Answer("200 OK", String::new(), r#"{"token":"t"}"#));
    let ask = format!("www-authenticate: Bearer realm=\"http://localhost:{}/t\"\r\n", thief.port);
    let blobs = Faulty::new(registry.port, move |_, before| match before {
        0 => Fault::Answer("401 Who", ask.clone(), ""),
        _ => Fault::None,
    });
    let to = blobs.port;
    let front = Faulty::by_head(registry.port, move |what, _, head| {
        match head.to_ascii_lowercase().contains("authorization: basic") {
            false => Fault::Answer("401 Who", "www-authenticate: Basic realm=\"r\"\r\n".to_owned(), ""),
            true if what.contains("/blobs/") => {
                leads_to(format!("http://localhost:{to}{}", what.strip_prefix("GET ").unwrap()))
            }
            true => Fault::None,
        }
    });
    let host = format!("localhost:{}", front.port);
    lab.registry(&["login", "-u", "anna", "-p", "secret", &host]).ok();
    let name = named(front.port, "x:1");
    lab.registry(&["pull", &name]).refused(1, &["refuses it"]);
    // Each of the other blobs is asked for the first time once.
    let pulled = (0..3).any(|_| lab.registry(&["pull", &name]).code == Some(0));
    assert!(pulled && lab.id(&name) == id);
    assert_eq!(thief.seen(), Vec::<String>::new(), "the user's password is nobody else's");
    assert!(blobs.seen().len() >= 3, "{:?}", blobs.seen());
    for head in blobs.heads() {
        assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    }
}

/// An identity token is in the body of a request: where a redirect leads, nobody is told it.
#[test]
fn a_token_server_leads_nobody_else_to_who_asks() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    registry.pushed(&lab, "x:1", 1000);
    let thief = Faulty::new(1, |_, _| Fault::Answer("200 OK", String::new(), r#"{"token":"abc"}"#));
    let elsewhere = format!("http://localhost:{}/stolen", thief.port);
    let tokens = Faulty::new(1, move |what, _| match what {
        "POST /within" => leads_to("/here".to_owned()),
        "POST /here" => Fault::Answer("200 OK", String::new(), r#"{"token":"abc"}"#),
        _ => leads_to(elsewhere.clone()),
    });
    for (path, is_own) in [("within", true), ("away", false)] {
        let realm = format!("http://localhost:{}/{path}", tokens.port);
        let asks = Faulty::by_head(registry.port, move |_, _, head| match head.contains("Bearer abc") {
            true => Fault::None,
            false => Fault::Answer("401 Who", format!("www-authenticate: Bearer realm=\"{realm}\"\r\n"), ""),
        });
        let auth = format!("{{\"auths\":{{\"localhost:{}\":{{\"identitytoken\":\"mine\"}}}}}}", asks.port);
        lab.write("auth.json", auth.as_bytes());
        let pulled = lab.registry(&["pull", &named(asks.port, "x:1")]);
        match is_own {
            true => drop(pulled.ok()),
            false => drop(pulled.refused(1, &["which is not told who asks"])),
        }
    }
    assert_eq!(thief.seen(), Vec::<String>::new());
}

#[test]
fn redirects_end() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    registry.pushed(&lab, "x:1", 1000);
    let circle = Faulty::new(registry.port, |what, _| match what.contains("/manifests/") {
        true => leads_to("2".to_owned()),
        false => Fault::None,
    });
    lab.registry(&["pull", &named(circle.port, "x:1")]).refused(1, &["leads further than 5 times"]);
    // As seen from the place itself.
    assert!(circle.seen().iter().any(|one| one == "GET /v2/x/manifests/2"), "{:?}", circle.seen());
}

#[test]
fn a_token_server_that_is_busy_is_asked_again() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    registry.pushed(&lab, "x:1", 1000);
    let tokens = Faulty::new(1, |_, before| match before {
        0 | 1 => Fault::Answer("503 Busy", "retry-after: 0\r\n".to_owned(), ""),
        _ => Fault::Answer("200 OK", String::new(), r#"{"token":"abc"}"#),
    });
    let realm = format!("http://localhost:{}/token", tokens.port);
    let asks = Faulty::by_head(registry.port, move |_, _, head| match head.contains("Bearer abc") {
        true => Fault::None,
        false => Fault::Answer("401 Who", format!("www-authenticate: Bearer realm=\"{realm}\"\r\n"), ""),
    });
    lab.registry(&["pull", &named(asks.port, "x:1")]).ok();
    assert!(tokens.seen().len() >= 3, "{:?}", tokens.seen());
}

#[test]
fn an_upload_that_a_registry_has_begun_is_gone_on_with() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let proxy = Faulty::new(registry.port, |_, _| Fault::None);
    // By its name the store takes the layers for known there, which they aren't.
    let name = named(proxy.port, "never/sent:1");
    lab.loads(&name, 1000);
    let uploads = |seen: Vec<String>| seen.iter().filter(|one| one.starts_with("POST")).count();
    let pushed = lab.registry(&["push", &name, &named(proxy.port, "team/x:1")]).ok();
    assert!(pushed.out.contains("(3 blobs sent, 0 taken over"), "{pushed:?}");
    assert_eq!(uploads(proxy.seen()), 3, "{:?}", proxy.seen());
    // What is damaged here isn't tried again there.
    let [large, _] = lab.layers_made();
    lab.out(&format!(
        "cd store/blobs/sha256; chmod u+w {large}; printf x | dd of={large} seek=700 bs=1 conv=notrunc 2>&1"
    ));
    let proxy = Faulty::new(registry.port, |_, _| Fault::None);
    let damaged = lab.registry(&["push", &name, &named(proxy.port, "team/y:1")]);
    damaged.refused(1, &[&large, "its content is not what its name says"]);
    let digest = format!("digest=sha256:{large}");
    let sent = proxy.seen().iter().filter(|one| one.starts_with("PUT") && one.contains(&digest)).count();
    assert_eq!(sent, 1, "{:?}", proxy.seen());
}

#[test]
fn the_environment_names_proxies() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (name, id) = registry.pushed(&lab, "x:1", 1000);
    lab.forget_all();
    let proxy = Faulty::new(1, |_, _| Fault::Answer("502 No", String::new(), ""));
    let pull = |name: &str, without: &str| {
        lab.sh(&format!(
            "export HOME=$PWD CONTAINERS_REGISTRIES_CONF=$PWD/none REGISTRY_AUTH_FILE=$PWD/none.json
             export HTTPS_PROXY=http://127.0.0.1:{0} HTTP_PROXY=http://127.0.0.1:{0} NO_PROXY={without}
             $UM pull {name}",
            proxy.port
        ))
    };
    // Nobody else reaches the loopback.
    pull(&name, "").ok();
    assert_eq!(lab.id(&name), id);
    assert_eq!(proxy.seen(), Vec::<String>::new());
    pull("registry.invalid/x", "").refused(1, &["registry.invalid: cannot be reached"]);
    let asked = proxy.seen();
    assert!(asked.iter().any(|one| one.contains("CONNECT registry.invalid:443")), "{asked:?}");
    for without in ["invalid", ".invalid", "registry.invalid:443", "a.io,invalid"] {
        pull("registry.invalid/x", without).refused(1, &["registry.invalid: cannot be reached"]);
        assert_eq!(proxy.seen().len(), asked.len(), "{without}");
    }
}
