//! Changes of an image's config, in the words of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`,
//! `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`.

mod health;

use std::str::FromStr;

use serde_json::{Map, Value, json};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// What is run by default, or the arguments of the entrypoint.
    Cmd(Vec<String>),
    /// What is run always.
    Entrypoint(Vec<String>),
    /// Variables.
    Env(Vec<(String, String)>),
    /// Ports, as `80/tcp`.
    Expose(Vec<String>),
    /// How engines find out whether a container is well, in the config's shape.
    HealthCheck(Value),
    /// An instruction for builds that begin with the image.
    OnBuild(String),
    /// Labels.
    Label(Vec<(String, String)>),
    /// The signal that stops a container.
    StopSignal(String),
    /// The user, and maybe a group.
    User(String),
    /// Directories for data.
    Volume(Vec<String>),
    /// The working directory.
    WorkDir(String),
}

/// A text that is no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("change {text:?}: {why}")]
pub struct ChangeError {
    text: String,
    why: String,
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Change, ChangeError> {
        let error = |why: String| ChangeError { text: text.to_owned(), why };
        let trimmed = text.trim();
        // CMD=… is accepted beside CMD …, as podman does.
        let (word, rest) = trimmed.split_once([' ', '\t', '=']).unwrap_or((trimmed, ""));
        let rest = rest.trim();
        let word = word.to_ascii_uppercase();
        if rest.is_empty() && !matches!(word.as_str(), "CMD" | "ENTRYPOINT") {
            return Err(error(format!("{word} needs a value")));
        }
        let one = || Ok(rest.to_owned());
        match word.as_str() {
            "CMD" => Ok(Change::Cmd(command(rest).map_err(error)?)),
            "ENTRYPOINT" => Ok(Change::Entrypoint(command(rest).map_err(error)?)),
            "ENV" => Ok(Change::Env(pairs(rest).map_err(error)?)),
            "LABEL" => Ok(Change::Label(pairs(rest).map_err(error)?)),
            "EXPOSE" => {
                let ports = words(rest).map_err(error)?;
                Ok(Change::Expose(ports.iter().map(|text| port(text)).collect::<Result<_, _>>().map_err(error)?))
            }
            "VOLUME" => match array(rest).map_err(error)? {
                Some(list) => Ok(Change::Volume(list)),
                None => Ok(Change::Volume(words(rest).map_err(error)?)),
            },
            "HEALTHCHECK" => health::parse(rest).map(Change::HealthCheck).map_err(error),
            "ONBUILD" => match rest.split_whitespace().next().map(str::to_ascii_uppercase).as_deref() {
                Some(word @ ("ONBUILD" | "FROM" | "MAINTAINER")) => {
                    Err(error(format!("{word} cannot be put off to a build")))
                }
                _ => one().map(Change::OnBuild),
            },
            "STOPSIGNAL" => one().map(Change::StopSignal),
            "USER" => one().map(Change::User),
            "WORKDIR" => one().map(Change::WorkDir),
            _ => Err(error(
                "one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR must \
                 come first"
                    .into(),
            )),
        }
    }
}

/// Parses a command: `["a", "b"]` is run as it is, anything else by the shell; nothing at all is no command.
fn command(text: &str) -> Result<Vec<String>, String> {
    match array(text)? {
        Some(list) => Ok(list),
        None if text.is_empty() => Ok(Vec::new()),
        None => Ok(vec!["/bin/sh".into(), "-c".into(), text.into()]),
    }
}

fn array(text: &str) -> Result<Option<Vec<String>>, String> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|error| format!("is no JSON array of strings: {error}"))
}

fn words(text: &str) -> Result<Vec<String>, String> {
    shlex::split(text).ok_or_else(|| "a quote is not closed".into())
}

/// Parses `A=1 B="two words"`, or `A the rest of the line`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        return match text.split_once(char::is_whitespace) {
            Some((name, value)) => Ok(vec![(name.to_owned(), value.trim().to_owned())]),
            None => Err(format!("{text:?} has no value: write NAME=VALUE")),
        };
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not of the form NAME=VALUE")),
        })
        .collect()
}

fn port(text: &str) -> Result<String, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range: Option<Vec<u16>> = number.splitn(2, '-').map(|part| part.parse().ok()).collect();
    match range {
        Some(_) if matches!(protocol, "tcp" | "udp" | "sctp") => Ok(format!("{number}/{protocol}")),
        _ => Err(format!("{text:?} is no port: write 80, 80/udp or 8000-8010/tcp")),
    }
}

/// Applies changes, in their order, to the config of an image as it is written. What they don't speak of stays.
pub fn apply(document: &mut Value, changes: &[Change]) {
    let mut command_given = false;
    for change in changes {
        let config = object(document, "config");
        match change {
            Change::Cmd(list) => {
                config.insert("Cmd".into(), json!(list));
                command_given = true;
            }
            Change::Entrypoint(list) => {
                config.insert("Entrypoint".into(), json!(list));
                // The command of the old entrypoint makes no sense as arguments of the new one.
                if !command_given {
                    config.remove("Cmd");
                }
            }
            Change::Env(pairs) => {
                for (name, value) in pairs {
                    set_variable(config, name, value);
                }
            }
            Change::Label(pairs) => {
                let labels = object_in(config, "Labels");
                labels.extend(pairs.iter().map(|(name, value)| (name.clone(), json!(value))));
            }
            Change::Expose(list) => object_in(config, "ExposedPorts").extend(keys(list)),
            Change::Volume(list) => object_in(config, "Volumes").extend(keys(list)),
            Change::HealthCheck(check) => {
                config.insert("Healthcheck".into(), check.clone());
            }
            Change::OnBuild(instruction) => {
                let list = config.entry("OnBuild").or_insert_with(|| json!([]));
                match list.as_array_mut() {
                    Some(list) => list.push(json!(instruction)),
                    None => *list = json!([instruction]),
                }
            }
            Change::StopSignal(text) => {
                config.insert("StopSignal".into(), json!(text));
            }
            Change::User(text) => {
                config.insert("User".into(), json!(text));
            }
            Change::WorkDir(path) => {
                let old = config.get("WorkingDir").and_then(Value::as_str).filter(|old| !old.is_empty());
                let path = std::path::Path::new(old.unwrap_or("/")).join(path);
                config.insert("WorkingDir".into(), json!(path.to_string_lossy()));
            }
        }
    }
}

fn keys(list: &[String]) -> impl Iterator<Item = (String, Value)> {
    list.iter().map(|key| (key.clone(), json!({})))
}

fn object<'a>(document: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !document.is_object() {
        *document = json!({});
    }
    match document {
        Value::Object(map) => object_in(map, key),
        _ => unreachable!("made an object above"),
    }
}

fn object_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Sets a variable, which keeps its place in the list when it gets another value.
fn set_variable(config: &mut Map<String, Value>, name: &str, value: &str) {
    let list = config.entry("Env").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Value::Array(list) = list else { unreachable!("made an array above") };
    let text = json!(format!("{name}={value}"));
    let old = list.iter_mut().find(|old| {
        old.as_str().is_some_and(|old| old.split_once('=').map_or(old, |(name, _)| name) == name)
    });
    match old {
        Some(old) => *old = text,
        None => list.push(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: Value, changes: &[&str]) -> Value {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let mut document = json!({ "config": before });
        apply(&mut document, &changes);
        document["config"].take()
    }

    #[test]
    fn both_forms_of_a_command() {
        assert_eq!(changed(json!({}), &[r#"CMD ["a", "b c"]"#])["Cmd"], json!(["a", "b c"]));
        assert_eq!(changed(json!({}), &["cmd echo $HOME"])["Cmd"], json!(["/bin/sh", "-c", "echo $HOME"]));
        assert_eq!(changed(json!({}), &["CMD=[\"x\"]"])["Cmd"], json!(["x"]));
        let old = json!({ "Cmd": ["old"], "Entrypoint": ["e"], "Healthcheck": { "Test": ["NONE"] } });
        assert_eq!(
            changed(old.clone(), &[r#"ENTRYPOINT ["/init"]"#]),
            json!({ "Entrypoint": ["/init"], "Healthcheck": { "Test": ["NONE"] } })
        );
        let both = changed(old, &[r#"CMD ["new"]"#, r#"ENTRYPOINT ["/init"]"#]);
        assert_eq!((both["Cmd"].clone(), both["Entrypoint"].clone()), (json!(["new"]), json!(["/init"])));
    }

    #[test]
    fn lists_grow_and_values_are_replaced() {
        let old = json!({ "Env": ["PATH=/bin", "A=1"], "Labels": { "x": "1" }, "WorkingDir": "/srv", "Volumes": null });
        let new = changed(
            old,
            &[
                r#"ENV A=2 B="two words""#,
                "ENV C all the rest",
                "LABEL x=2 y=",
                "EXPOSE 80 53/udp",
                r#"VOLUME ["/data"]"#,
                "VOLUME /a /b",
                "WORKDIR app",
                "USER 1000:100",
                "STOPSIGNAL SIGINT",
            ],
        );
        let expected = json!({
            "Env": ["PATH=/bin", "A=2", "B=two words", "C=all the rest"],
            "Labels": { "x": "2", "y": "" },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Volumes": { "/data": {}, "/a": {}, "/b": {} },
            "WorkingDir": "/srv/app",
            "User": "1000:100",
            "StopSignal": "SIGINT",
        });
        assert_eq!(new, expected);
    }

    #[test]
    fn checks_and_instructions_for_builds() {
        let new = changed(
            json!({ "OnBuild": ["RUN a"] }),
            &[
                "ONBUILD COPY . /app",
                "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f localhost",
            ],
        );
        let check = json!({
            "Test": ["CMD-SHELL", "curl -f localhost"],
            "Interval": 90_000_000_000u64, "Timeout": 500_000_000, "Retries": 3,
        });
        assert_eq!(new, json!({ "OnBuild": ["RUN a", "COPY . /app"], "Healthcheck": check }));
        assert_eq!(changed(json!({}), &["HEALTHCHECK NONE"])["Healthcheck"], json!({ "Test": ["NONE"] }));
        let exec = changed(json!({}), &[r#"HEALTHCHECK CMD ["/check", "a"]"#]);
        assert_eq!(exec["Healthcheck"]["Test"], json!(["CMD", "/check", "a"]));
    }

    #[test]
    fn what_is_no_change() {
        for text in [
            "",
            "RUN x",
            "ONBUILD",
            "ONBUILD FROM x",
            "HEALTHCHECK",
            "HEALTHCHECK --fly=1 CMD x",
            "HEALTHCHECK CMD",
            "ENV",
            "ENV A",
            "ENV A=1 B",
            "CMD [1]",
            "CMD [\"a\"",
            "EXPOSE http",
            "LABEL \"a=1",
        ] {
            assert!(text.parse::<Change>().is_err(), "{text:?}");
        }
    }
}
