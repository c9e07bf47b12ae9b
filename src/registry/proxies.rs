//! Which proxy leads to a host: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case, as curl, Go
//! and so podman and Docker read them.

use std::net::IpAddr;

use ureq::Proxy;

use super::error::{RegistryError, Result};

/// Returns the proxy on the way to `host`, which may have a port.
///
/// # Errors
/// When what the environment names is no proxy: without it nothing must be sent past it.
pub(super) fn proxy(is_tls: bool, host: &str) -> Result<Option<Proxy>> {
    let of = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    match chosen(is_tls, host, &of) {
        None => Ok(None),
        Some((key, address)) => Proxy::new(&address)
            .map(Some)
            .map_err(|error| RegistryError::Settings(format!("{key} is no address of a proxy: {error}"))),
    }
}

/// Returns the address, and which variable says it.
fn chosen(
    is_tls: bool,
    host: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    let (name, port) = split(host);
    // Nobody else reaches this machine's own registries.
    if is_loopback(host) {
        return None;
    }
    let without = environment("NO_PROXY").or_else(|| environment("no_proxy")).unwrap_or_default();
    let port = port.unwrap_or(if is_tls { 443 } else { 80 });
    if without.split([',', ' ']).any(|one| covers(one.trim(), name, port)) {
        return None;
    }
    let keys = match is_tls {
        true => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        false => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    keys.into_iter().find_map(|key| Some((key, environment(key)?)))
}

/// Splits a host from its port, without brackets or last dot.
fn split(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.rsplit_once(':') {
        // Not one of the colons of IPv6.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.'), port)
}

/// Tells whether an entry of `NO_PROXY` names a host: a domain with all below it, `.domain` or `*.domain` only what is
/// below it, an address, a network such as `10.0.0.0/8`, each perhaps with a port, or `*`.
fn covers(entry: &str, name: &str, port: u16) -> bool {
    if entry.is_empty() || entry == "*" {
        return entry == "*";
    }
    if let Some((network, bits)) = entry.split_once('/') {
        return is_within(network, bits, name).unwrap_or(false);
    }
    let (wanted, wanted_port) = split(entry);
    if wanted_port.is_some_and(|wanted| wanted != port) {
        return false;
    }
    let (name, wanted) = (name.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    match wanted.strip_prefix('*').unwrap_or(&wanted).strip_prefix('.') {
        Some(domain) => is_below(&name, domain),
        None => name == wanted || is_below(&name, &wanted),
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

fn is_within(network: &str, bits: &str, name: &str) -> Option<bool> {
    let (network, name): (IpAddr, IpAddr) = (network.parse().ok()?, name.parse().ok()?);
    let bits: u32 = bits.parse().ok()?;
    match (network, name) {
        (IpAddr::V4(network), IpAddr::V4(name)) => {
            let shift = 32u32.checked_sub(bits)?;
            Some(u64::from(network.to_bits()) >> shift == u64::from(name.to_bits()) >> shift)
        }
        (IpAddr::V6(network), IpAddr::V6(name)) => {
            let shift = 128u32.checked_sub(bits)?;
            Some(
                network.to_bits().checked_shr(shift).unwrap_or(0)
                    == name.to_bits().checked_shr(shift).unwrap_or(0),
            )
        }
        _ => Some(false),
    }
}

/// Returns whether a host is this machine: there registries may speak without certificates, as for Docker.
pub(super) fn is_loopback(host: &str) -> bool {
    let (name, _) = split(host);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_the_proxy() {
        let chosen = |is_tls: bool, host: &str, set: &[(&str, &str)]| {
            let of =
                |key: &str| set.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned());
            chosen(is_tls, host, &of).map(|(_, address)| address)
        };
        let both = [("HTTPS_PROXY", "tls:1"), ("http_proxy", "plain:1")];
        assert_eq!(chosen(true, "q.io", &both).as_deref(), Some("tls:1"));
        assert_eq!(chosen(false, "q.io", &both).as_deref(), Some("plain:1"));
        assert_eq!(chosen(true, "q.io", &[("HTTP_PROXY", "plain:1")]), None);
        assert_eq!(chosen(true, "q.io", &[("ALL_PROXY", "all:1")]).as_deref(), Some("all:1"));
        for host in ["localhost:5000", "127.0.0.1", "[::1]:5000"] {
            assert_eq!(chosen(true, host, &both), None, "{host}");
        }
        let but =
            [("HTTPS_PROXY", "tls:1"), ("NO_PROXY", "a.io, .b.io,*.c.io,d.io:5000,10.0.0.0/8,fd00::/8")];
        for host in ["a.io", "x.A.io:5000", "y.b.io", "z.c.io", "d.io:5000", "10.1.2.3:443", "[fd12::1]:5000"]
        {
            assert_eq!(chosen(true, host, &but), None, "{host}");
        }
        for host in ["xa.io", "a.io.evil", "b.io", "d.io", "11.1.2.3", "[fe80::1]:5000"] {
            assert_eq!(chosen(true, host, &but).as_deref(), Some("tls:1"), "{host}");
        }
        assert_eq!(chosen(true, "q.io", &[("HTTPS_PROXY", "tls:1"), ("no_proxy", "*")]), None);
    }
}
