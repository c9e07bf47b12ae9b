//! The user's names and passwords at registries: containers-auth.json(5), Docker's config.json, and credential helpers.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{RegistryError, Result};
use crate::sys::flock::{Access, lock_until};

/// What Docker's own registry is called in these files, for reasons of history.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// A helper says so in place of credentials.
const NO_CREDENTIALS: &str = "credentials not found in native keychain";
/// The user's name that stands for an identity token, by the protocol of credential helpers.
const TOKEN_USER: &str = "<token>";
/// How long another process may take to change a file; its helper may ask the user for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name and a password, or a token in their place.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// For basic authentication.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// What is given to the token server in exchange.
    IdentityToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets don't get into logs.
        f.write_str("Credentials")
    }
}

/// A file with credentials, or with the names of helpers that keep them.
#[derive(Debug)]
struct AuthFile {
    path: PathBuf,
    document: Map<String, Value>,
}

/// What a credential helper answers and is told.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HelperAnswer {
    #[serde(rename = "ServerURL")]
    server: String,
    username: String,
    secret: String,
}

/// Finds the user's credentials for a repository: the one file that was named, or the first of containers' and Docker's
/// files that knows it, by the longest beginning of `HOST/PATH`.
///
/// # Errors
/// When a file that is there can't be read, or a helper fails.
pub fn find(named: Option<&Path>, host: &str, path: &str) -> Result<Option<Credentials>> {
    let places = Places::of(named);
    for file in &places.files {
        let Some(file) = places.read(file)? else { continue };
        if let Some(found) = file.find(host, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Keeps credentials in the file that was named, or in containers' own; returns which.
///
/// # Errors
/// When it can't be read or written.
pub fn keep(named: Option<&Path>, host: &str, user: &str, password: &str) -> Result<PathBuf> {
    let path = Places::of(named).own()?;
    let _alone = Alone::at(&path)?;
    let mut file =
        AuthFile::read(&path)?.unwrap_or_else(|| AuthFile { path: path.clone(), document: Map::new() });
    if let Some(helper) = file.helper(key_of(host)) {
        let told = HelperAnswer {
            server: key_of(host).to_owned(),
            username: user.to_owned(),
            secret: password.to_owned(),
        };
        ask_helper(&helper, "store", json!(told).to_string().as_bytes())?;
        file.entries().insert(key_of(host).to_owned(), json!({}));
    } else {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        file.entries().insert(key_of(host).to_owned(), json!({ "auth": auth }));
    }
    file.write()?;
    Ok(path)
}

/// Forgets credentials in every file that knows them, and in the helpers that these name; false when none does.
///
/// # Errors
/// When a file can't be read or written, or a helper fails.
pub fn forget(named: Option<&Path>, host: &str) -> Result<bool> {
    let mut found = false;
    let places = Places::of(named);
    for path in &places.files {
        if places.read(path)?.is_none() {
            continue;
        }
        let _alone = Alone::at(path)?;
        // Another process may have changed it before this one was alone.
        let Some(mut file) = AuthFile::read(path)? else { continue };
        found |= file.forget(host)?;
    }
    Ok(found)
}

fn env(key: &str) -> Option<PathBuf> {
    std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where credentials may lie.
struct Places {
    /// In the order of containers-auth.json(5).
    files: Vec<PathBuf>,
    /// Whether the user has named the only one.
    is_named: bool,
}

impl Places {
    fn of(named: Option<&Path>) -> Places {
        if let Some(named) = named.map(Path::to_owned).or_else(|| env("REGISTRY_AUTH_FILE")) {
            return Places { files: vec![named], is_named: true };
        }
        let home = env("HOME");
        let config = env("XDG_CONFIG_HOME").or_else(|| Some(home.clone()?.join(".config")));
        let docker = env("DOCKER_CONFIG").or_else(|| Some(home.clone()?.join(".docker")));
        let mut files: Vec<PathBuf> =
            env("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")).into_iter().collect();
        if rustix::process::geteuid().is_root() {
            files.push("/run/containers/0/auth.json".into());
        }
        files.extend(config.map(|dir| dir.join("containers/auth.json")));
        files.extend(docker.map(|dir| dir.join("config.json")));
        Places { files, is_named: false }
    }

    /// Reads one of them. Where many are looked at, one that may not be read is another user's: `su` and `sudo -E` leave
    /// the environment as it was.
    fn read(&self, file: &Path) -> Result<Option<AuthFile>> {
        match File::open(file) {
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied && !self.is_named => {
                log::warn!("{}: cannot be read, and is passed over: {denied}", file.display());
                Ok(None)
            }
            _ => AuthFile::read(file),
        }
    }

    /// Returns where new credentials are kept.
    fn own(&self) -> Result<PathBuf> {
        let nowhere =
            || RegistryError::Settings("no place for credentials: set HOME, or give --authfile".to_owned());
        // One that survives the session, unless the user has one already.
        let there = self.files.iter().find(|path| path.exists());
        let lasting = self.files.iter().rfind(|path| path.ends_with("containers/auth.json"));
        there.or(lasting).or(self.files.first()).cloned().ok_or_else(nowhere)
    }
}

/// The lock of a file that is read, changed and replaced. The file itself is another one afterwards, so that its directory
/// is locked.
struct Alone {
    _dir: Option<File>,
}

impl Alone {
    fn at(path: &Path) -> Result<Alone> {
        let error = |io: io::Error| cannot_be_written(path, &io);
        let dir = directory_of(path);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(error)?;
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let dir = File::open(directory_of(&place)).map_err(error)?;
        match lock_until(&dir, Access::Exclusive, Instant::now() + PATIENCE) {
            Ok(true) => Ok(Alone { _dir: Some(dir) }),
            Ok(false) => Err(error(io::Error::other("another process is changing it"))),
            Err(errno) => {
                // NFS locks no directories.
                log::debug!("{}: is changed without a lock: {errno}", path.display());
                Ok(Alone { _dir: None })
            }
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot_be_written(path: &Path, error: &io::Error) -> RegistryError {
    RegistryError::Settings(format!("{}: cannot be written: {error}", path.display()))
}

/// Returns what a host is called in these files.
fn key_of(host: &str) -> &str {
    if is_hub(host) { HUB_KEY } else { host }
}

fn is_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Returns a key without scheme and version, as old Dockers wrote it.
fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.strip_suffix('/').unwrap_or(key);
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

fn same(key: &str, host: &str) -> bool {
    bare(key) == host || (is_hub(host) && is_hub(bare(key)))
}

impl AuthFile {
    fn read(path: &Path) -> Result<Option<AuthFile>> {
        let error = |why: String| RegistryError::Settings(format!("{}: {why}", path.display()));
        let text = match fs::read(path) {
            Err(missing)
                if matches!(missing.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            text => text.map_err(|io| error(format!("cannot be read: {io}")))?,
        };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(AuthFile { path: path.to_owned(), document: Map::new() }));
        }
        let document: Value = serde_json::from_slice(&text)
            .map_err(|json| error(format!("is no file of credentials: {json}")))?;
        match document {
            Value::Object(document) => Ok(Some(AuthFile { path: path.to_owned(), document })),
            _ => Err(error("is no file of credentials: an object is expected".to_owned())),
        }
    }

    fn entries(&mut self) -> &mut Map<String, Value> {
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        match auths {
            Value::Object(entries) => entries,
            // It has just been made one.
            _ => unreachable!("auths is an object"),
        }
    }

    /// Returns the program that keeps the credentials of a key.
    fn helper(&self, key: &str) -> Option<String> {
        let own = self.document.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
            helpers.iter().find(|(host, _)| same(host, bare(key))).and_then(|(_, helper)| helper.as_str())
        });
        let helper = own.or_else(|| self.document.get("credsStore").and_then(Value::as_str))?;
        (!helper.is_empty()).then(|| helper.to_owned())
    }

    fn find(&self, host: &str, path: &str) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(host)
            && let Some(found) = of_helper(&helper, key_of(host))?
        {
            return Ok(Some(found));
        }
        let Some(auths) = self.document.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let full = format!("{host}/{path}");
        let fits = |key: &str| {
            same(key, host)
                || full.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let best = auths.iter().filter(|(key, _)| fits(key)).max_by_key(|(key, _)| bare(key).len());
        Ok(best.and_then(|(_, entry)| of_entry(entry)))
    }

    /// Forgets a host, here and in the helper; false when neither knew it.
    fn forget(&mut self, host: &str) -> Result<bool> {
        let mut keys: Vec<String> = self.entries().keys().filter(|key| same(key, host)).cloned().collect();
        let has_entries = !keys.is_empty();
        let mut found = has_entries;
        // Docker keeps an empty entry of what a helper has, podman keeps none.
        if !keys.iter().any(|key| key == key_of(host)) {
            keys.push(key_of(host).to_owned());
        }
        for key in &keys {
            if let Some(helper) = self.helper(key)
                && of_helper(&helper, key)?.is_some()
            {
                ask_helper(&helper, "erase", key.as_bytes())?;
                found = true;
            }
            self.entries().remove(key);
        }
        if has_entries {
            self.write()?;
        }
        Ok(found)
    }

    fn write(&self) -> Result<()> {
        let error = |io: io::Error| cannot_be_written(&self.path, &io);
        let mut text = serde_json::to_vec_pretty(&self.document).map_err(|json| error(json.into()))?;
        text.push(b'\n');
        // A link to where the user keeps such files stays one.
        let place = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = directory_of(&place);
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
        file.write_all(&text).map_err(error)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(error)?;
        file.as_file().sync_all().map_err(error)?;
        file.persist(&place).map_err(|persist| error(persist.error))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(error)
    }
}

/// Reads one entry of `auths`. An empty one says only that a helper has them.
fn of_entry(entry: &Value) -> Option<Credentials> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Some(Credentials::IdentityToken(token.to_owned()));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        return Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() });
    }
    let decoded = STANDARD.decode(text("auth")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    // Docker pads short passwords with zeros.
    let password = password.trim_end_matches('\0');
    Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
}

fn of_helper(helper: &str, key: &str) -> Result<Option<Credentials>> {
    let Some(answer) = ask_helper(helper, "get", key.as_bytes())? else { return Ok(None) };
    let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|error| {
        RegistryError::Settings(format!(
            "docker-credential-{helper}: answers what is no credentials: {error}"
        ))
    })?;
    Ok(match answer.username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credentials::IdentityToken(answer.secret)),
        user => Some(Credentials::Password { user: user.to_owned(), password: answer.secret }),
    })
}

/// Speaks with `docker-credential-HELPER`
/// (<https://github.com/docker/docker-credential-helpers>); `None` when it knows nothing.
fn ask_helper(helper: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let program = format!("docker-credential-{helper}");
    let error = |why: String| RegistryError::Settings(format!("{program} {verb}: {why}"));
    if helper.contains('/') {
        return Err(error("a helper's name has no slash".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|io| error(format!("cannot be run: {io}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by its status.
        if let Err(io) = stdin.write_all(input) {
            log::debug!("{program} {verb}: {io}");
        }
    }
    let output = child.wait_with_output().map_err(|io| error(io.to_string()))?;
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    let said =
        String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
    if said.trim() == NO_CREDENTIALS {
        return Ok(None);
    }
    Err(error(said.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(document: Value) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(&path, document.to_string()).unwrap();
        (dir, path)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn the_longest_beginning_counts() {
        let auth = |text: &str| json!({ "auth": STANDARD.encode(text) });
        let (_dir, path) = file(json!({ "auths": {
            "q.io": auth("a:1"), "q.io/team": auth("b:x:y"), "https://index.docker.io/v1/": auth("hub:h"),
            "https://old.io/v2/": auth("o:o"), "t.io": { "identitytoken": "T" }, "e.io": {},
        }}));
        let found = |host: &str, repository: &str| find(Some(&path), host, repository).unwrap();
        assert_eq!(found("q.io", "other/x"), password("a", "1"));
        assert_eq!(found("q.io", "team/x"), password("b", "x:y"));
        assert_eq!(found("q.io", "teams/x"), password("a", "1"));
        assert_eq!(found("registry-1.docker.io", "library/x"), password("hub", "h"));
        assert_eq!(found("old.io", "x"), password("o", "o"));
        assert_eq!(found("t.io", "x"), Some(Credentials::IdentityToken("T".to_owned())));
        assert_eq!(found("e.io", "x"), None);
        assert_eq!(found("q.io.evil", "team/x"), None);
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten() {
        let (_dir, path) =
            file(json!({ "auths": { "a.io": { "auth": "eDp5" } }, "HttpHeaders": { "X": "1" } }));
        keep(Some(&path), "docker.io", "u", "p:w").unwrap();
        assert_eq!(find(Some(&path), "registry-1.docker.io", "library/x").unwrap(), password("u", "p:w"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(forget(Some(&path), "docker.io").unwrap());
        assert!(!forget(Some(&path), "docker.io").unwrap());
        let left: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(left, json!({ "auths": { "a.io": { "auth": "eDp5" } }, "HttpHeaders": { "X": "1" } }));
    }

    #[test]
    fn those_who_keep_at_once_keep_all() {
        let (_dir, path) = file(json!({}));
        let hosts: Vec<String> = (0..40).map(|at| format!("r{at}.io")).collect();
        std::thread::scope(|scope| {
            for hosts in hosts.chunks(10) {
                scope
                    .spawn(|| hosts.iter().for_each(|host| drop(keep(Some(&path), host, "u", "p").unwrap())));
            }
        });
        let lost: Vec<&String> =
            hosts.iter().filter(|host| find(Some(&path), host, "x").unwrap().is_none()).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    #[test]
    fn a_damaged_file_is_told_and_left() {
        let (_dir, path) = file(json!([1]));
        assert!(find(Some(&path), "a.io", "x").is_err());
        assert!(keep(Some(&path), "a.io", "u", "p").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]");
    }
}
