//! Registries: Debian's docker-registry on the loopback, with and without TLS and passwords, behind a proxy that breaks
//! things; skopeo pushes and pulls beside. No test goes further than the loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{needs_program, wait_until};

use super::faulty::{Fault, Faulty};
use super::lab::{Image, Lab, Tar, gzip, sha256};

/// A registry that ends with the test.
pub struct Registry {
    child: Child,
    pub port: u16,
}

impl Registry {
    /// Starts one whose data lie in the lab; `more` goes into its configuration.
    pub fn new(lab: &Lab, name: &str, http: &str, more: &str) -> Registry {
        // Somebody else may take the port between the two; then the registry ends, and another one is tried.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let data = lab.at(name);
            let text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http:\n  addr: 127.0.0.1:{port}\n  secret: s\n{http}{more}",
                data.display()
            );
            let config = lab.write(&format!("{name}.yml"), text.as_bytes());
            let log = fs::File::create(lab.at(&format!("{name}.log"))).unwrap();
            let mut command = Command::new("docker-registry");
            command
                .arg("serve")
                .arg(config)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            let mut child = command.spawn().unwrap();
            let mut ended = false;
            let up = wait_until(support::PATIENCE, || {
                ended = child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            assert!(
                up,
                "the registry doesn't answer: {:?}",
                fs::read_to_string(lab.at(&format!("{name}.log")))
            );
            if !ended {
                return Registry { child, port };
            }
        }
        panic!("no registry: {:?}", fs::read_to_string(lab.at(&format!("{name}.log"))));
    }

    pub fn plain(lab: &Lab) -> Registry {
        Registry::new(lab, "registry", "", "")
    }

    /// An image with so many bytes that nobody can guess, pushed; its name and its id.
    pub fn pushed(&self, lab: &Lab, path: &str, bytes: usize) -> (String, String) {
        let name = named(self.port, path);
        let id = lab.loads(&name, bytes);
        lab.registry(&["push", &name]).ok();
        (name, id)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What an image is called at a port of the loopback.
pub fn named(port: u16, path: &str) -> String {
    format!("localhost:{port}/{path}")
}

/// Whether a request reads a blob.
pub fn reads_a_blob(what: &str) -> bool {
    what.starts_with("GET") && what.contains("/blobs/")
}

/// An environment of its own: nothing of the user's settings.
impl Lab {
    pub fn registry(&self, args: &[&str]) -> support::cli::Ended {
        let mut command = self.command(args);
        command
            .env("HOME", self.path())
            .env("CONTAINERS_REGISTRIES_CONF", self.at("registries.conf"))
            .env("REGISTRY_AUTH_FILE", self.at("auth.json"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_RUNTIME_DIR");
        support::cli::run(&mut command)
    }

    /// Loads an image whose second layer has so many bytes that nobody can guess.
    pub fn loads(&self, name: &str, bytes: usize) -> String {
        let mut random = fastrand::Rng::with_seed(bytes as u64);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
        let base = Tar::new().dir("bin/").program("bin/true", b"#!/bin/true\n").bytes();
        let top = Tar::new().file("noise", noise).bytes();
        let mut image = Image::new(name, vec![base, top]);
        for (blob, ending) in &mut image.blobs {
            *blob = gzip(blob);
            *ending = "+gzip".to_owned();
        }
        image.oci().write(&self.at("layout"));
        self.um(&["load", "-q", "layout"]).ok().out.trim().to_owned()
    }

    /// The layers of what [`Lab::loads`] made, by their hexadecimal digits: the large one, then the small one.
    pub fn layers_made(&self) -> [String; 2] {
        let blobs = fs::read_dir(self.at("layout/blobs/sha256")).unwrap().map(|entry| entry.unwrap());
        let layers = blobs.filter(|entry| fs::read(entry.path()).unwrap().starts_with(&[0x1f, 0x8b]));
        let mut layers: Vec<_> =
            layers.map(|entry| (entry.metadata().unwrap().len(), entry.file_name())).collect();
        layers.sort();
        let names: Vec<String> =
            layers.into_iter().rev().map(|(_, name)| name.into_string().unwrap()).collect();
        names.try_into().unwrap()
    }

    /// Where the store keeps a part of a blob.
    pub fn part(&self, blob: &str) -> PathBuf {
        self.store().join(format!("tmp/partial-{blob}"))
    }

    /// Waits until a blob has come whole.
    pub fn comes_whole(&self, blob: &str) {
        let size = fs::metadata(self.at(&format!("layout/blobs/sha256/{blob}"))).unwrap().len();
        comes_to(&self.part(blob), size);
    }

    pub fn id(&self, name: &str) -> String {
        self.inspect(name)["Id"].as_str().unwrap().to_owned()
    }

    pub fn forget_all(&self) {
        self.um(&["prune", "-a", "-f"]);
        assert_eq!(self.images(), Vec::<String>::new());
    }
}

/// Waits until a file has its size.
pub fn comes_to(file: &Path, size: u64) -> bool {
    wait_until(support::PATIENCE, || fs::metadata(file).is_ok_and(|found| found.len() == size))
}

#[test]
fn what_is_pushed_is_pulled() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let name = named(registry.port, "team/app:1");
    let id = lab.loads(&name, 300_000);
    let first = lab.registry(&["push", &name]).ok();
    assert!(first.out.contains("(3 blobs sent, 0 taken over, 0 there before)"), "{first:?}");
    let again = lab.registry(&["push", &name]).ok();
    assert!(again.out.contains("(0 blobs sent, 0 taken over, 3 there before)"), "{again:?}");
    // Another repository of the registry takes the layers over.
    let other = named(registry.port, "team/other:2");
    let moved = lab.registry(&["push", &name, &other]).ok();
    assert!(moved.out.contains("(1 blob sent, 2 taken over, 0 there before)"), "{moved:?}");
    assert_eq!(lab.registry(&["tags", other.rsplit_once(':').unwrap().0]).ok().out, "2\n");
    let digest = lab.inspect(&name)["RepoDigests"].clone();

    lab.forget_all();
    let pulled = lab.registry(&["pull", &name]).ok();
    assert!(pulled.out.ends_with(&format!("Pulled image: {name}\n")), "{pulled:?}");
    assert_eq!((lab.id(&name), lab.inspect(&name)["RepoDigests"].clone()), (id.clone(), digest));
    lab.verify();
    let again = lab.registry(&["pull", &name]).ok();
    assert!(again.out.ends_with(&format!("Up to date: {name}\n")), "{again:?}");
    assert_eq!(lab.registry(&["pull", "-q", &other]).ok().out.trim(), id);

    // By digest it has no name.
    lab.forget_all();
    let digest = pulled.out.lines().next().unwrap().strip_prefix("Digest: ").unwrap();
    let by_digest = format!("{}@{digest}", name.rsplit_once(':').unwrap().0);
    lab.registry(&["pull", &by_digest]).ok();
    assert_eq!(lab.images(), [format!("<none>:<none> {}", &id[7..19])]);
}

#[test]
fn skopeo_pulls_what_is_pushed_and_pushes_what_is_pulled() {
    needs_program!("docker-registry");
    needs_program!("skopeo");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (name, id) = registry.pushed(&lab, "a:1", 100_000);
    lab.out(&format!("skopeo copy -q --src-tls-verify=false docker://{name} oci:copy:x"));
    let port = registry.port;
    // Docker's types of manifests and layers.
    lab.out(&format!(
        "skopeo copy -q --format v2s2 --dest-tls-verify=false oci:copy:x docker://localhost:{port}/b:2"
    ));
    lab.forget_all();
    lab.registry(&["pull", &format!("localhost:{port}/b:2")]).ok();
    assert_eq!(lab.id(&format!("localhost:{port}/b:2")), id);
    lab.verify();
}

#[test]
fn a_break_costs_what_was_missing() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "big:1", 3_000_000);
    for no_ranges in [false, true] {
        lab.forget_all();
        // The large layer breaks off three times, each time a megabyte further.
        let proxy = Faulty::new(registry.port, move |what, before| match reads_a_blob(what) {
            // All comes again each time, and goes a megabyte further.
            true if before < 3 && no_ranges => Fault::CutWithoutRange((before + 1) * 900_000),
            true if before < 3 => Fault::Cut(900_000),
            true if no_ranges => Fault::NoRange,
            _ => Fault::None,
        });
        let name = named(proxy.port, "big:1");
        lab.registry(&["pull", &name]).ok();
        assert_eq!(lab.id(&name), id);
        lab.verify();
        let ranges = proxy.seen().iter().filter(|one| one.contains(" range bytes=")).count();
        assert_eq!(ranges, 3, "{:?}", proxy.seen());
        let left = fs::read_dir(lab.store().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "nothing is left of a pull that went well");
    }
}

#[test]
fn a_killed_pull_goes_on_where_it_was() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "big:1", 3_000_000);
    lab.forget_all();
    // After the break the registry is silent: asked to wait, the pull is killed meanwhile.
    let proxy = Faulty::new(registry.port, |what, before| match reads_a_blob(what) {
        true if before == 0 && what.len() > 20 => Fault::Cut(1_000_000),
        true => Fault::Answer("503 Busy", "retry-after: 50\r\n".to_owned(), ""),
        false => Fault::None,
    });
    let name = named(proxy.port, "big:1");
    // The config comes whole at the first try, for it is shorter; the second layer doesn't.
    let mut pull = lab.command(&["pull", &name]);
    let mut pull = pull.env("HOME", lab.path()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let broke = wait_until(support::PATIENCE, || proxy.seen().iter().any(|one| one.contains(" range ")));
    assert!(broke, "{:?}", proxy.seen());
    let [_, small] = lab.layers_made();
    lab.comes_whole(&small);
    kill_process(Pid::from_child(&pull), Signal::KILL).unwrap();
    pull.wait().unwrap();
    let whole = Faulty::new(registry.port, |_, _| Fault::None);
    let name = named(whole.port, "big:1");
    lab.registry(&["pull", &name]).ok();
    assert_eq!(lab.id(&name), id);
    assert!(whole.seen().iter().any(|one| one.contains(" range bytes=1000000-")), "{:?}", whole.seen());
    // What was whole is there, too.
    assert!(!whole.seen().iter().any(|one| one.contains(&small)), "{:?}", whole.seen());
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}

#[test]
fn wrong_bytes_are_refused_and_a_wrong_part_is_not_gone_on_with() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (_, id) = registry.pushed(&lab, "big:1", 1_000_000);
    lab.forget_all();
    let proxy = Faulty::new(registry.port, |what, _| match reads_a_blob(what) {
        true => Fault::Wrong(500_000),
        false => Fault::None,
    });
    let name = named(proxy.port, "big:1");
    lab.registry(&["pull", &name]).refused(1, &["its content has the digest", "layer 2 of 2"]);
    assert_eq!(lab.images(), Vec::<String>::new());
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
    // Wrong bytes that an earlier pull left are found out, and all is fetched again.
    let [layer, _] = lab.layers_made();
    lab.write(&format!("store/tmp/partial-{layer}"), &[7; 4000]);
    let whole = Faulty::new(registry.port, |_, _| Fault::None);
    let name = named(whole.port, "big:1");
    lab.registry(&["pull", &name]).ok();
    assert_eq!(lab.id(&name), id);
    lab.verify();
    // A manifest that is another one than its digest says.
    let wrong = Faulty::new(registry.port, |what, _| match what.contains("/manifests/") {
        true => Fault::Wrong(3),
        false => Fault::None,
    });
    lab.forget_all();
    let name = named(wrong.port, "big:1");
    lab.registry(&["pull", &name]).refused(1, &["sent something else: its content has the digest"]);
}

#[test]
fn a_busy_registry_is_asked_again_and_answers_are_told() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (pushed, _) = registry.pushed(&lab, "x:1", 1000);
    let asked = AtomicUsize::new(0);
    // The first of a connection finds out how the registry speaks.
    let busy = Faulty::new(registry.port, move |_, _| match asked.fetch_add(1, Ordering::Relaxed) % 9 {
        1 => Fault::Answer("429 Too Many Requests", "retry-after: 0\r\n".to_owned(), ""),
        2 => Fault::Answer("500 Oh", "retry-after: 0\r\n".to_owned(), ""),
        _ => Fault::None,
    });
    lab.registry(&["pull", &named(busy.port, "x:1")]).ok();
    // Uploads as well.
    lab.registry(&["push", &pushed, &named(busy.port, "y:1")]).ok();
    for (status, said) in [
        ("403 Forbidden", "unionmount login localhost:"),
        ("404 Not Found", "has no such image: gone away"),
        ("429 Slow", "too many requests"),
        ("418 Teapot", "answers 418: gone away"),
    ] {
        let body = r#"{"errors":[{"code":"X","message":"gone away"}]}"#;
        let refusing = Faulty::new(registry.port, move |what, _| match what.contains("/manifests/") {
            true => Fault::Answer(status, "retry-after: 9999\r\n".to_owned(), body),
            false => Fault::None,
        });
        lab.registry(&["pull", &named(refusing.port, "x:1")]).refused(1, &[said]);
    }
    // The host must be one that can't exist.
    lab.registry(&["pull", "registry.invalid/x"]).refused(1, &["registry.invalid: cannot be reached: "]);
    lab.registry(&["pull", "localhost:1/x"]).refused(1, &["localhost:1: cannot be reached: "]);
}

/// A certificate of our own for localhost, and its authority.
fn certificate(lab: &Lab) {
    lab.write("names", b"subjectAltName=DNS:localhost,IP:127.0.0.1");
    lab.out(
        "ec() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \"$@\" 2>&1; }
         ec -x509 -keyout ca.key -out ca.pem -days 2 -subj /CN=authority
         ec -keyout key.pem -out request -subj /CN=localhost
         openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem 2>&1",
    );
}

#[test]
fn tls_and_passwords() {
    needs_program!("docker-registry");
    needs_program!("htpasswd");
    needs_program!("openssl");
    let lab = Lab::new();
    certificate(&lab);
    lab.out("htpasswd -Bbn anna secret:word > users");
    let http = format!("  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}\n", lab.path().display());
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}/users}}}}\n", lab.path().display());
    let registry = Registry::new(&lab, "registry", &http, &auth);
    let host = format!("localhost:{}", registry.port);
    let name = format!("{host}/app:1");
    let id = lab.loads(&name, 2000);
    lab.registry(&["push", &name]).refused(1, &["unionmount login localhost:"]);
    // On the loopback any certificate will do; with --tls-verify none but a known one.
    lab.registry(&["login", "-u", "anna", "-p", "wrong", &host]).refused(1, &["refuses it"]);
    assert!(!lab.at("auth.json").exists());
    lab.registry(&["login", "--tls-verify", "-u", "anna", "-p", "secret:word", &host])
        .refused(1, &["cannot be reached", "certs.d"]);
    fs::create_dir(lab.at("certs")).unwrap();
    fs::copy(lab.at("ca.pem"), lab.at("certs/ca.crt")).unwrap();
    let strict = ["--tls-verify", "--cert-dir", "certs"];
    let login = ["login", "-u", "anna", "-p", "secret:word", &host];
    lab.registry(&[&login[..], &strict[..]].concat()).ok();
    lab.registry(&[&["push", &name][..], &strict[..]].concat()).ok();
    lab.forget_all();
    lab.registry(&[&["pull", &name][..], &strict[..]].concat()).ok();
    assert_eq!(lab.id(&name), id);
    // skopeo reads what login kept.
    if support::is_installed("skopeo") {
        let shown = lab.out(&format!(
            "skopeo inspect --authfile auth.json --cert-dir certs --format '{{{{.Name}}}}' docker://{name}"
        ));
        assert_eq!(shown, format!("{host}/app"));
    }
    lab.registry(&["logout", &host]).ok();
    lab.registry(&["pull", &name]).refused(1, &["unionmount login"]);
    lab.registry(&["logout", &host]).refused(1, &["not logged in"]);
}

#[test]
fn tokens_are_fetched_for_what_is_done() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (pushed, _) = registry.pushed(&lab, "team/x:1", 1000);
    // The token server lists what it was asked for in its log; the registry behind wants no token.
    let tokens = Faulty::new(1, |what, _| {
        match what.contains("scope=repository%3Ateam%2Fx%3Apull&")
            || what.ends_with("scope=repository%3Ateam%2Fx%3Apull")
        {
            true => Fault::Answer("200 OK", String::new(), r#"{"access_token":"abc"}"#),
            false => Fault::Answer("403 No", String::new(), r#"{"errors":[{"message":"not for you"}]}"#),
        }
    });
    let realm = format!("http://localhost:{}/token", tokens.port);
    let asks = Faulty::by_head(registry.port, move |what, _, head| {
        match what.contains("/team/x/") && !head.contains("Bearer abc") {
            true => Fault::Answer(
                "401 Who",
                format!("www-authenticate: Bearer realm=\"{realm}\",service=\"reg\"\r\n"),
                "",
            ),
            false => Fault::None,
        }
    });
    lab.registry(&["pull", &named(asks.port, "team/x:1")]).ok();
    assert!(tokens.seen()[0].contains("service=reg"), "{:?}", tokens.seen());
    lab.registry(&["push", &pushed, &named(asks.port, "team/x:2")])
        .refused(1, &["token server answers 403: not for you"]);
}

#[test]
fn mirrors_short_names_and_blocked_registries() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let port = registry.port;
    let name = format!("localhost:{port}/hub/tool:1");
    let id = lab.loads(&name, 1000);
    lab.registry(&["push", &name]).ok();
    lab.forget_all();
    let lacking = Faulty::new(port, |what, _| match what.contains("/manifests/") {
        true => Fault::Answer("404 No", String::new(), ""),
        false => Fault::None,
    });
    let conf = format!(
        "unqualified-search-registries = [\"localhost:{}\", \"good.invalid\"]\n\
         [[registry]]\nprefix = \"good.invalid\"\n[[registry.mirror]]\nlocation = \"localhost:1\"\n\
         [[registry.mirror]]\nlocation = \"localhost:{port}/hub\"\ninsecure = true\n\
         [[registry]]\nprefix = \"bad.invalid\"\nblocked = true\n",
        lacking.port
    );
    lab.write("registries.conf", conf.as_bytes());
    lab.registry(&["pull", "tool:1"]).ok();
    assert_eq!(lab.images(), [format!("good.invalid/tool:1 {}", &id[7..19])]);
    // Found again without asking anybody.
    for name in ["tool:1", "docker://tool:1"] {
        lab.registry(&["create", "--pull", "never", name]).ok();
    }
    lab.registry(&["pull", "bad.invalid/x"]).refused(1, &["blocked by registries.conf"]);
    // Who can't be reached may have it.
    lab.write("registries.conf", conf.replace(&lacking.port.to_string(), "1").as_bytes());
    lab.registry(&["pull", "tool:1"]).refused(1, &["localhost:1: cannot be reached"]);
    lab.registry(&["tags", "tool"]).refused(1, &["localhost:1: cannot be reached"]);
    // Who refuses a user may have it, too; whoever doesn't log in is refused what isn't there by some.
    let denying = Faulty::new(port, |what, _| match what.contains("/manifests/") {
        true => Fault::Answer("403 No", String::new(), ""),
        false => Fault::None,
    });
    lab.write(
        "registries.conf",
        conf.replace(&lacking.port.to_string(), &denying.port.to_string()).as_bytes(),
    );
    // anna:secret
    let auth = format!("{{\"auths\":{{\"localhost:{}\":{{\"auth\":\"YW5uYTpzZWNyZXQ=\"}}}}}}", denying.port);
    lab.write("auth.json", auth.as_bytes());
    lab.registry(&["pull", "tool:1"]).refused(1, &["refuses it", "write it out, as good.invalid/tool:1"]);
    fs::remove_file(lab.at("auth.json")).unwrap();
    lab.registry(&["pull", "tool:1"]).ok();
    lab.write("registries.conf", format!("short-name-mode = \"enforcing\"\n{conf}").as_bytes());
    lab.registry(&["pull", "tool:1"]).refused(1, &["short-name-mode", "good.invalid/tool:1"]);
    lab.write("registries.conf", b"[[registry]\n");
    lab.registry(&["pull", "tool:1"]).refused(1, &["registries.conf"]);
}

#[test]
fn of_several_platforms_one_is_taken() {
    needs_program!("docker-registry");
    needs_program!("skopeo");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let port = registry.port;
    let mut manifests = Vec::new();
    for (at, arch) in ["amd64", "arm64"].into_iter().enumerate() {
        let name = format!("localhost:{port}/multi:{arch}");
        let mut image = Image::new(&name, vec![Tar::new().file(arch, "x").bytes()]);
        image.config["architecture"] = arch.into();
        image.oci().write(&lab.at(&format!("layout{at}")));
        lab.um(&["load", "-q", &format!("layout{at}")]).ok();
        let pushed = lab.registry(&["push", "-q", &name]).ok();
        let size = lab.out(&format!("wc -c < store/blobs/sha256/{}", &pushed.out.trim()[7..]));
        manifests.push(serde_json::json!({
            "mediaType": super::lab::MANIFEST, "digest": pushed.out.trim(), "size": size.parse::<u64>().unwrap(),
            "platform": { "os": "linux", "architecture": arch },
        }));
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    })
    .to_string();
    lab.write("index", index.as_bytes());
    lab.out(&format!(
        "curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @index \
         http://localhost:{port}/v2/multi/manifests/all"
    ));
    lab.forget_all();
    let name = format!("localhost:{port}/multi:all");
    let pulled = lab.registry(&["pull", "--platform", "linux/arm64", &name]).ok();
    assert!(pulled.out.contains(&format!("Digest: sha256:{}", sha256(index.as_bytes()))), "{pulled:?}");
    assert_eq!(lab.inspect(&name)["Architecture"], "arm64");
    lab.registry(&["pull", "--platform", "linux/s390x", &name])
        .refused(1, &["no image for linux/s390x, but for linux/amd64, linux/arm64"]);
    let remote = lab.registry(&["inspect", "--remote", &name]).ok();
    let remote: Value = serde_json::from_str(&remote.out).unwrap();
    assert_eq!(remote[0]["RepoTags"], serde_json::json!([name]));
    assert_eq!(remote[0]["Platforms"], serde_json::json!(["linux/amd64", "linux/arm64"]));
}

#[test]
fn what_was_pulled_by_the_digest_of_an_index_is_found_again() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (name, id) = registry.pushed(&lab, "app:1", 1000);
    let repository = name.strip_suffix(":1").unwrap();
    let manifest =
        lab.inspect(&name)["RepoDigests"][0].as_str().unwrap().rsplit_once('@').unwrap().1.to_owned();
    let size = fs::metadata(lab.store().join("blobs/sha256").join(&manifest[7..])).unwrap().len();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{ "mediaType": super::lab::MANIFEST, "digest": manifest, "size": size }],
    })
    .to_string();
    lab.write("index", index.as_bytes());
    lab.out(&format!(
        "curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @index \
         http://localhost:{}/v2/app/manifests/all",
        registry.port
    ));
    lab.forget_all();
    let by_index = format!("{repository}@sha256:{}", sha256(index.as_bytes()));
    let by_manifest = format!("{repository}@{manifest}");
    lab.registry(&["pull", &by_index]).ok();
    lab.registry(&["pull", &by_manifest]).ok();
    drop(registry);
    for digest in [&by_index, &by_manifest] {
        lab.registry(&["create", "--pull", "never", digest]).ok();
        assert_eq!(lab.id(digest), id);
    }
    assert_eq!(lab.inspect(&id)["RepoDigests"], serde_json::json!([by_index, by_manifest]));
    // The same digest of another repository is not known to be the same.
    let other = by_index.replace("/app@", "/other@");
    lab.registry(&["create", "--pull", "never", &other]).refused(1, &["no image"]);
    // Names come and go, and it stays.
    lab.um(&["tag", &id, "x:1"]).ok();
    lab.um(&["tag", &id, "y:1"]).ok();
    lab.um(&["rmi", "x:1"]).ok();
    assert_eq!(lab.id(&by_index), id);
}

#[test]
fn what_went_well_is_told_before_a_failure() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (name, id) = registry.pushed(&lab, "app:1", 1000);
    let pulled = lab.registry(&["pull", "-q", &name, &named(registry.port, "none:1")]);
    assert_eq!(pulled.out.trim(), id, "{pulled:?}");
    pulled.refused(1, &["none:1"]);
    lab.registry(&["create", "--platform", "linux/no/such/thing", &name]).refused(2, &["linux/arm64"]);
    lab.registry(&["create", "--platform", "linux/s390x", &name]).refused(1, &["not for linux/s390x"]);
    lab.registry(&["create", "--platform", "linux", &name]).ok();
}

#[test]
fn run_and_create_pull_what_is_missing() {
    needs_program!("docker-registry");
    let lab = Lab::new();
    let registry = Registry::plain(&lab);
    let (name, id) = registry.pushed(&lab, "app:1", 1000);
    lab.forget_all();
    lab.registry(&["create", "--pull", "never", &name]).refused(1, &["no image"]);
    lab.registry(&["create", "--name", "one", &name]);
    assert_eq!(lab.id(&name), id);
    // What is there is not asked for; with always it is.
    drop(registry);
    lab.registry(&["create", "--name", "two", &name]).ok();
    lab.registry(&["create", "--pull", "always", &name]).refused(1, &["cannot be reached"]);
}
