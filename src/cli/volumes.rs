//! How what is mounted in a container is written: `-v`, `--mount`, `--tmpfs`.

use std::path::{Path, PathBuf};

use crate::container::{Tmpfs, Volume};

/// What `--mount` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mounted {
    /// Something of the host's.
    Bind(Volume),
    /// A filesystem in memory.
    Tmpfs(Tmpfs),
}

fn absolute(target: &str) -> Result<PathBuf, String> {
    match Path::new(target).is_absolute() {
        true => Ok(target.into()),
        false => Err(format!("{target:?} is no absolute path of the container")),
    }
}

fn source(text: &str) -> Result<PathBuf, String> {
    if !text.contains('/') && text != "." && text != ".." {
        return Err(format!("named volumes are not known here; give a path of the host, as ./{text}"));
    }
    std::fs::canonicalize(text).map_err(|error| format!("{text}: {error}"))
}

/// Reads `SOURCE:TARGET[:ro|rw]`. Options that have no meaning here (`z`, `Z`, `rprivate`…) are taken and do nothing.
pub(super) fn parse_volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(from), Some(target), options, None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("give SOURCE:TARGET or SOURCE:TARGET:ro".into());
    };
    let mut read_only = false;
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "rw" | "z" | "Z" | "private" | "rprivate" | "rbind" => {}
            "ro" => read_only = true,
            other => return Err(format!("{other:?} is neither ro nor rw")),
        }
    }
    Ok(Volume { target: absolute(target)?, source: source(from)?, read_only })
}

/// Reads `type=bind,source=…,target=…[,readonly]` and `type=tmpfs,target=…[,tmpfs-size=…][,tmpfs-mode=…]`.
pub(super) fn parse_mount(text: &str) -> Result<Mounted, String> {
    let (mut kind, mut from, mut target, mut read_only, mut options) =
        ("volume", None, None, false, Vec::new());
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "type" => kind = value,
            "source" | "src" => from = Some(value),
            "target" | "dst" | "destination" => target = Some(value),
            "readonly" | "ro" => read_only = !matches!(value, "false" | "0"),
            "tmpfs-size" => options.push(format!("size={value}")),
            "tmpfs-mode" => options.push(format!("mode={value}")),
            "bind-propagation" | "relabel" | "consistency" => {}
            other => return Err(format!("{other:?} is not known; give type, source, target, readonly")),
        }
    }
    let target = absolute(target.ok_or("it names no target")?)?;
    match kind {
        "bind" => {
            let from = from.ok_or("it names no source")?;
            // Here even a single word is a path.
            let source = std::fs::canonicalize(from).map_err(|error| format!("{from}: {error}"))?;
            Ok(Mounted::Bind(Volume { source, target, read_only }))
        }
        "tmpfs" => {
            options.extend(read_only.then(|| "ro".to_owned()));
            Ok(Mounted::Tmpfs(Tmpfs { target, options }))
        }
        "volume" => Err("named volumes are not known here; give type=bind or type=tmpfs".into()),
        other => Err(format!("type={other} is not known; give type=bind or type=tmpfs")),
    }
}

/// Reads `TARGET[:OPTION,…]`.
pub(super) fn parse_tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Tmpfs { target: absolute(target)?, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths() {
        let volume = parse_volume("/:/host:ro").unwrap();
        assert_eq!(volume, Volume { source: "/".into(), target: "/host".into(), read_only: true });
        assert!(!parse_volume("/tmp:/t:Z").unwrap().read_only);
        for bad in ["/tmp", "data:/data", "/tmp:rel", "/tmp:/t:maybe", "/no/such/dir:/x", "/a:/b:ro:x", ":/x"]
        {
            parse_volume(bad).unwrap_err();
        }
    }

    #[test]
    fn mounts_are_binds_or_memory() {
        let bind = parse_mount("type=bind,src=/,dst=/host,readonly").unwrap();
        assert_eq!(bind, Mounted::Bind(parse_volume("/:/host:ro").unwrap()));
        let memory = parse_mount("type=tmpfs,target=/t,tmpfs-size=1m").unwrap();
        assert_eq!(memory, Mounted::Tmpfs(parse_tmpfs("/t:size=1m").unwrap()));
        for bad in
            ["type=bind,src=/", "src=data,target=/d", "type=npipe,target=/x", "type=bind,target=/x,a=b"]
        {
            parse_mount(bad).unwrap_err();
        }
    }
}
