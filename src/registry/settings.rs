//! Where a name leads: containers-registries.conf(5), version 2.
//!
//! Without a file names lead where they say, and a name without a registry to docker.io, as Docker has it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{RegistryError, Result};
use super::reference::Reference;
use crate::image::name::ImageName;

/// Docker's own registry answers under another name than images carry.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// What registries.conf and the files beside it say.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    registries: Vec<Registry>,
    search: Vec<String>,
    aliases: BTreeMap<String, String>,
    /// Whether a name that may stand for several is refused.
    is_enforcing: bool,
}

/// A repository at one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host, perhaps with a port.
    pub host: String,
    /// The repository there.
    pub path: String,
    /// Whether it may speak without TLS, or with a certificate that nobody vouches for.
    pub insecure: bool,
    /// Whether it stands in for another one.
    pub is_mirror: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(rename = "unqualified-search-registries")]
    search: Option<Vec<String>>,
    #[serde(rename = "short-name-mode")]
    short_name_mode: Option<ShortNameMode>,
    registry: Vec<Registry>,
    aliases: BTreeMap<String, String>,
}

/// What becomes of a name without a registry that may be one of several's. There is nobody to be asked here, so that the two
/// last are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShortNameMode {
    Enforcing,
    Permissive,
    Disabled,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    location: String,
    insecure: bool,
    #[serde(rename = "pull-from-mirror")]
    pull_from_mirror: Option<String>,
}

impl Settings {
    /// Reads the user's files: the one that `CONTAINERS_REGISTRIES_CONF` names, or the user's own, or the system's; and
    /// what lies in `registries.conf.d` beside it.
    ///
    /// # Errors
    /// When a file can't be read, or says what can't be understood.
    pub fn read() -> Result<Settings> {
        let mut settings = Settings::default();
        let env = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let system = PathBuf::from("/etc/containers");
        let own = env("XDG_CONFIG_HOME").or_else(|| Some(env("HOME")?.join(".config")));
        let own = own.map(|dir| dir.join("containers"));
        let main = match (env("CONTAINERS_REGISTRIES_CONF"), &own) {
            (Some(named), _) => named,
            (None, Some(own)) if own.join("registries.conf").exists() => own.join("registries.conf"),
            _ => system.join("registries.conf"),
        };
        settings.add_file(&main)?;
        for dir in std::iter::once(&system).chain(&own) {
            settings.add_directory(&dir.join("registries.conf.d"))?;
        }
        Ok(settings)
    }

    fn add_directory(&mut self, dir: &Path) -> Result<()> {
        let error = |error: io::Error| {
            RegistryError::Settings(format!("{}: cannot be listed: {error}", dir.display()))
        };
        let listed = match fs::read_dir(dir) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed.map_err(error)?,
        };
        let mut files = Vec::new();
        for entry in listed {
            files.push(entry.map_err(error)?.path());
        }
        files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        files.sort();
        files.iter().try_for_each(|path| self.add_file(path))
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        match fs::read_to_string(path) {
            Ok(text) => {
                self.add(&text).map_err(|why| RegistryError::Settings(format!("{}: {why}", path.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(RegistryError::Settings(format!("{}: cannot be read: {error}", path.display())))
            }
        }
    }

    /// Adds what a file says; of one prefix, what was said last counts.
    fn add(&mut self, text: &str) -> std::result::Result<(), String> {
        let table: toml::Table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if table.contains_key("registries") {
            return Err("is of version 1 of registries.conf, which no program reads any more".to_owned());
        }
        let document: Document = toml::Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| error.message().to_owned())?;
        for mut registry in document.registry {
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            if registry.prefix.is_empty() {
                return Err("a [[registry]] has neither prefix nor location".to_owned());
            }
            if registry.location.is_empty()
                && registry.prefix.starts_with("*.")
                && !registry.mirror.is_empty()
            {
                // The wildcard's mirror takes the place of the host.
                log::debug!("{}: mirrors stand for the whole host", registry.prefix);
            }
            self.registries.retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        if let Some(search) = document.search {
            self.search = search;
        }
        if let Some(mode) = document.short_name_mode {
            self.is_enforcing = mode == ShortNameMode::Enforcing;
        }
        self.aliases.extend(document.aliases);
        Ok(())
    }

    /// Returns the names that a reference may stand for, in the order in which they are tried.
    ///
    /// # Errors
    /// When an alias or a search registry is no name.
    pub fn names(&self, reference: &Reference) -> Result<Vec<Reference>> {
        let Some(short) = &reference.short else { return Ok(vec![reference.clone()]) };
        let named = |name: &str| -> Result<Reference> {
            let full = format!("{name}:{}", reference.name.tag());
            let name: ImageName =
                full.parse().map_err(|error| RegistryError::Settings(format!("{error}")))?;
            Ok(reference.with_name(name))
        };
        if let Some(alias) = self.aliases.get(short) {
            return Ok(vec![named(alias)?]);
        }
        if self.search.is_empty() {
            return Ok(vec![reference.clone()]);
        }
        self.search.iter().map(|registry| named(&format!("{registry}/{short}"))).collect()
    }

    /// Asks the registries that a name leads to, one after the other, until one has what is asked for. The next one is asked
    /// only where one says that it has no such thing: one that can't be reached, or refuses the user, may have it, and who
    /// owns the name at the next is another.
    ///
    /// # Errors
    /// That of the first that has it not, or of the one that ends the search.
    pub fn first_of<T>(
        &self,
        reference: &Reference,
        mut ask: impl FnMut(&Reference, Endpoint) -> Result<T>,
    ) -> Result<T> {
        let names = self.names(reference)?;
        if self.is_enforcing && names.len() > 1 {
            let names: Vec<String> = names.iter().map(Reference::to_string).collect();
            return Err(RegistryError::Settings(format!(
                "{reference}: registries.conf (short-name-mode) wants the registry to be written: {}",
                names.join(" or ")
            )));
        }
        let mut first = None;
        for (at, name) in names.iter().enumerate() {
            for endpoint in self.to_read(name)? {
                let is_mirror = endpoint.is_mirror;
                match ask(name, endpoint) {
                    Err(error) if is_mirror => log::info!("mirror: {error}"),
                    Err(error) if error.is_absence() => {
                        first.get_or_insert(error);
                    }
                    found => return found.map_err(|why| ended_by(why, &names[at + 1..])),
                }
            }
        }
        Err(first
            .unwrap_or_else(|| RegistryError::Settings(format!("{reference}: no registry is to be asked"))))
    }

    /// Returns the places where a repository may be read, mirrors first.
    ///
    /// # Errors
    /// When the registry is blocked.
    pub fn to_read(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let primary = self.to_write(reference)?;
        let Some(registry) = self.of(&reference.name) else { return Ok(vec![primary]) };
        let suits = |mirror: &&Mirror| match mirror.pull_from_mirror.as_deref() {
            Some("digest-only") => reference.digest.is_some(),
            Some("tag-only") => reference.digest.is_none(),
            _ => !registry.mirror_by_digest_only || reference.digest.is_some(),
        };
        let mirrors = registry.mirror.iter().filter(suits).map(|mirror| {
            let place = moved(&reference.name, &registry.prefix, &mirror.location);
            endpoint(&place, mirror.insecure, true)
        });
        Ok(mirrors.chain([primary]).collect())
    }

    /// Returns the place where a repository is written.
    ///
    /// # Errors
    /// When the registry is blocked.
    pub fn to_write(&self, reference: &Reference) -> Result<Endpoint> {
        let name = &reference.name;
        let Some(registry) = self.of(name) else {
            return Ok(endpoint(&format!("{}/{}", name.registry(), name.path()), false, false));
        };
        if registry.blocked {
            return Err(RegistryError::Settings(format!(
                "{}: {} is blocked by registries.conf",
                reference, registry.prefix
            )));
        }
        let location = if registry.location.is_empty() { None } else { Some(registry.location.as_str()) };
        let place = match location {
            Some(location) => moved(name, &registry.prefix, location),
            None => format!("{}/{}", name.registry(), name.path()),
        };
        Ok(endpoint(&place, registry.insecure, false))
    }

    /// Tells how the registry itself is spoken to, where the user's name and password are tried.
    ///
    /// # Errors
    /// When it is blocked.
    pub fn to_log_in(&self, host: &str) -> Result<Endpoint> {
        let registry = self.leading(host);
        if registry.is_some_and(|registry| registry.blocked) {
            return Err(RegistryError::Settings(format!("{host}: is blocked by registries.conf")));
        }
        Ok(endpoint(host, registry.is_some_and(|registry| registry.insecure), false))
    }

    /// Returns the settings whose prefix says most of a name.
    fn of(&self, name: &ImageName) -> Option<&Registry> {
        self.leading(&format!("{}/{}", name.registry(), name.path()))
    }

    fn leading(&self, full: &str) -> Option<&Registry> {
        let leading = self.registries.iter().filter(|registry| leads(&registry.prefix, full));
        leading.max_by_key(|registry| registry.prefix.len())
    }
}

/// Says which names were not tried, since one registry ended the search.
fn ended_by(why: RegistryError, others: &[Reference]) -> RegistryError {
    if others.is_empty() {
        return why;
    }
    let others: Vec<String> = others.iter().map(Reference::to_string).collect();
    RegistryError::SearchEnded { why: Box::new(why), others: others.join(" or ") }
}

/// Tells whether a prefix is one of a name's: up to a part's end, or `*.` and the end of a host.
fn leads(prefix: &str, full: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = full.split('/').next().unwrap_or_default();
        return host.split(':').next().unwrap_or_default().ends_with(domain);
    }
    full.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// Returns a name whose prefix is another one.
fn moved(name: &ImageName, prefix: &str, location: &str) -> String {
    let full = format!("{}/{}", name.registry(), name.path());
    match full.strip_prefix(prefix) {
        Some(rest) => format!("{location}{rest}"),
        // A wildcard stands for the host.
        None => format!("{location}/{}", name.path()),
    }
}

fn endpoint(place: &str, insecure: bool, is_mirror: bool) -> Endpoint {
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = if host == HUB.0 { HUB.1 } else { host };
    Endpoint { host: host.to_owned(), path: path.to_owned(), insecure, is_mirror }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io", "quay.io"]
        short-name-mode = "permissive"
        [aliases]
        "tool" = "quay.io/team/tool"
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.local:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "digests.local"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "docker.io/secret"
        blocked = true
        [[registry]]
        prefix = "example.com/a"
        location = "other.example/b"
        insecure = true
        [[registry]]
        prefix = "*.lab.example"
        location = "gate.example/lab"
    "#;

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.add(CONF).unwrap();
        settings
    }

    fn places(settings: &Settings, text: &str) -> Vec<String> {
        let reference: Reference = text.parse().unwrap();
        let endpoints = settings.to_read(&reference).unwrap();
        endpoints
            .iter()
            .map(|one| format!("{}/{}{}", one.host, one.path, if one.insecure { " insecure" } else { "" }))
            .collect()
    }

    #[test]
    fn without_settings_a_name_leads_where_it_says() {
        let none = Settings::default();
        assert_eq!(places(&none, "busybox"), ["registry-1.docker.io/library/busybox"]);
        assert_eq!(places(&none, "q.io/a/b"), ["q.io/a/b"]);
    }

    #[test]
    fn mirrors_come_first_and_prefixes_are_moved() {
        let settings = settings();
        assert_eq!(
            places(&settings, "busybox"),
            ["mirror.local:5000/hub/library/busybox insecure", "registry-1.docker.io/library/busybox"]
        );
        let by_digest = format!("busybox@sha256:{}", "0".repeat(64));
        assert_eq!(places(&settings, &by_digest).len(), 3);
        assert_eq!(places(&settings, "example.com/a/x:1"), ["other.example/b/x insecure"]);
        assert_eq!(places(&settings, "example.com/ab/x:1"), ["example.com/ab/x"]);
        assert_eq!(places(&settings, "one.lab.example/x"), ["gate.example/lab/x"]);
        assert!(settings.to_read(&"secret/x".parse().unwrap()).unwrap_err().to_string().contains("blocked"));
    }

    #[test]
    fn logging_in_is_as_insecure_as_the_registry() {
        let mut settings = settings();
        settings.add("[[registry]]\nlocation = \"lab:5000\"\ninsecure = true").unwrap();
        settings.add("[[registry]]\nlocation = \"bad.example\"\nblocked = true").unwrap();
        let of = |host: &str| settings.to_log_in(host).map(|one| (one.host, one.insecure));
        assert_eq!(of("lab:5000").unwrap(), ("lab:5000".to_owned(), true));
        assert_eq!(of("lab:5001").unwrap(), ("lab:5001".to_owned(), false));
        assert_eq!(of("docker.io").unwrap(), ("registry-1.docker.io".to_owned(), false));
        assert!(of("bad.example").unwrap_err().to_string().contains("blocked"));
    }

    #[test]
    fn short_names_are_searched_for() {
        let settings = settings();
        let candidates = |text: &str| -> Vec<String> {
            let found = settings.names(&text.parse().unwrap()).unwrap();
            found.iter().map(|one| one.name.full()).collect()
        };
        assert_eq!(candidates("app:2"), ["docker.io/library/app:2", "quay.io/app:2"]);
        assert_eq!(candidates("tool:2"), ["quay.io/team/tool:2"]);
        assert_eq!(candidates("q.io/app"), ["q.io/app:latest"]);
        assert_eq!(candidates("docker://app:2"), ["docker.io/library/app:2", "quay.io/app:2"]);
        assert_eq!(candidates("docker://tool"), ["quay.io/team/tool:latest"]);
    }

    #[test]
    fn the_next_registry_is_asked_where_one_has_it_not() {
        let not_found =
            || RegistryError::NotFound { what: "x".into(), host: "h".into(), said: String::new() };
        let away = || RegistryError::Unreachable { host: "h".into(), why: "away".into() };
        let denied = |is_anonymous: bool| {
            let (what, host, said, way_out) = ("x".into(), "h".into(), String::new(), "no".into());
            RegistryError::Denied { what, host, said, way_out, is_anonymous }
        };
        let busy = |status: u16| {
            let (what, host, said) = ("x".into(), "h".into(), String::new());
            RegistryError::Answer { what, host, status, said }
        };
        let asked = |text: &str, settings: &Settings, answer: &dyn Fn(&Endpoint) -> Result<()>| {
            let mut asked = Vec::new();
            let found = settings.first_of(&text.parse().unwrap(), |_, endpoint| {
                asked.push(endpoint.host.clone());
                answer(&endpoint)
            });
            (asked, found.map_err(|error| error.to_string()))
        };
        let mut settings = settings();
        let (hosts, told) = asked("app", &settings, &|_| Err(not_found()));
        assert_eq!(hosts, ["mirror.local:5000", "registry-1.docker.io", "quay.io"]);
        assert!(told.unwrap_err().contains("no such image"));
        // A mirror stands for another one, whatever is wrong with it.
        let (hosts, told) = asked("app", &settings, &|_| Err(away()));
        assert_eq!(hosts, ["mirror.local:5000", "registry-1.docker.io"]);
        let told = told.unwrap_err();
        assert!(told.contains("away") && told.contains("write it out, as quay.io/app"), "{told}");
        // Some refuse whoever doesn't log in what they don't have. Who refuses a user may have it.
        assert_eq!(asked("app", &settings, &|_| Err(denied(true))).0.len(), 3);
        assert_eq!(asked("app", &settings, &|_| Err(denied(false))).0.len(), 2);
        for status in [400, 408, 425, 429, 500] {
            assert_eq!(asked("app", &settings, &|_| Err(busy(status))).0.len(), 2, "{status}");
        }
        settings.add("short-name-mode = \"enforcing\"").unwrap();
        let (hosts, told) = asked("app:2", &settings, &|_| Ok(()));
        assert_eq!(hosts, Vec::<String>::new());
        let told = told.unwrap_err();
        assert!(told.contains("app:2 or quay.io/app:2"), "{told}");
        assert_eq!(asked("tool", &settings, &|_| Ok(())).0, ["quay.io"]);
        assert!(settings.add("short-name-mode = \"x\"").is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("[[registry]]\nblocked = true", "neither prefix nor location"),
            ("[registries.search]\nregistries = []", "version 1"),
            ("x = ", ""),
            ("registry = 3", ""),
        ] {
            assert!(Settings::default().add(text).unwrap_err().contains(said), "{text}");
        }
    }
}
