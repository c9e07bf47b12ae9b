//! The hosts that are spoken to: the registry, and those to which it leads, token servers and where blobs lie.
//!
//! Each has an agent of its own: what the user allows the registry (any certificate, no TLS), and the user's certificate for
//! it, are no other host's. Redirects are followed here, so that the agent is the one of the host that is asked, and what
//! tells who the user is stays with the host that it was meant for.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;

use parking_lot::Mutex;
use ureq::http::{Method, Request, Response, Uri, header};
use ureq::{Agent, Body, SendBody};

use super::error::{RegistryError, Result};
use super::proxies::is_loopback;
use super::transport::{Tls, agent};

/// What is sent along with a request. It is made anew for every try.
pub(super) type MakeBody<'a> = &'a mut dyn FnMut() -> Result<(Box<dyn Read + Send>, u64)>;

/// Why a request has no answer.
pub(super) enum Failed {
    /// The way to the registry.
    Http(ureq::Error),
    /// Something here.
    Own(RegistryError),
}

impl From<RegistryError> for Failed {
    fn from(error: RegistryError) -> Failed {
        Failed::Own(error)
    }
}

/// Longer ways lead nowhere.
const MOST_REDIRECTS: usize = 5;

/// A registry's blobs lie in a few places. One that leads to more loses the connections to the others.
const MOST_AGENTS: usize = 16;

/// Who speaks to hosts.
pub(super) struct Hosts {
    /// The registry, as it was named.
    own: String,
    /// The same, as places say it.
    own_place: String,
    /// What the user says of certificates.
    verify: Option<bool>,
    cert_dir: Option<PathBuf>,
    agents: Mutex<HashMap<(String, Tls), Agent>>,
}

/// A request.
pub(super) struct Sent<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(header::HeaderName, String)],
    /// Who asks. No other host is told.
    pub(super) authorization: Option<&'a str>,
    /// Who may get the body.
    pub(super) body: BodyIs,
}

/// Who may get what is sent along with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyIs {
    /// Whoever the answer leads to.
    Anybodys,
    /// Nobody but the host that is asked: it tells who the user is.
    Secret,
}

/// An answer, and whether another host gave it than was asked.
pub(super) struct Came {
    pub(super) response: Response<Body>,
    pub(super) is_foreign: bool,
}

/// Where a URL leads.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    is_tls: bool,
    /// With the port, where it isn't the usual one.
    host: String,
}

impl Hosts {
    pub(super) fn new(own: &str, verify: Option<bool>, cert_dir: Option<PathBuf>) -> Hosts {
        let own_place =
            place_of(&format!("https://{own}")).map_or_else(|_| own.to_owned(), |place| place.host);
        Hosts { own: own.to_owned(), own_place, verify, cert_dir, agents: Mutex::default() }
    }

    /// Returns the agent of a host.
    ///
    /// # Errors
    /// When the user's certificates for it, or the proxy on the way, can't be read.
    pub(super) fn agent(&self, host: &str, tls: Tls) -> Result<Agent> {
        let is_own = host == self.own || host == self.own_place;
        // Certificates lie under the name that the user gives.
        let named = if is_own { &self.own } else { host };
        let key = (named.to_owned(), tls);
        if let Some(known) = self.agents.lock().get(&key) {
            return Ok(known.clone());
        }
        let made = agent(named, tls, self.cert_dir.as_deref(), is_own)?;
        let mut agents = self.agents.lock();
        if agents.len() >= MOST_AGENTS {
            agents.retain(|(known, _), _| *known == self.own);
        }
        Ok(agents.entry(key).or_insert(made).clone())
    }

    /// Sends a request, and follows where the answer leads. `own` is how the registry speaks.
    pub(super) fn send(
        &self,
        sent: &Sent<'_>,
        own: Tls,
        mut body: Option<MakeBody<'_>>,
    ) -> std::result::Result<Came, Failed> {
        let asked = place_of(sent.url)?;
        let mut url = sent.url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let place = place_of(&url)?;
            if place != asked && body.is_some() && sent.body == BodyIs::Secret {
                return Err(self.led(format!("it leads to {url}, which is not told who asks")).into());
            }
            let agent = self.agent(&place.host, self.tls(&place, &url, own)?)?;
            let authorization = sent.authorization.filter(|_| place == asked);
            let body = body.as_mut().map(|body| &mut **body as MakeBody<'_>);
            let response = send_once(&agent, sent, &url, authorization, body)?;
            match leads_to(&sent.method, &response) {
                Some(location) => url = resolved(&url, &location),
                None => return Ok(Came { response, is_foreign: place != asked }),
            }
        }
        Err(self.led(format!("it leads further than {MOST_REDIRECTS} times, at last to {url}")).into())
    }

    /// Returns what is asked of the host of a place.
    fn tls(&self, place: &Place, url: &str, own: Tls) -> Result<Tls> {
        let any_certificate =
            self.verify == Some(false) || (self.verify.is_none() && is_loopback(&place.host));
        match place.is_tls {
            true if place.host == self.own_place && own != Tls::Plain => Ok(own),
            true if any_certificate => Ok(Tls::Unverified),
            true => Ok(Tls::Verified),
            false if own == Tls::Plain || self.verify == Some(false) => Ok(Tls::Plain),
            // It would give away what TLS keeps.
            false => {
                Err(self
                    .led(format!("it leads to {url}, which is not encrypted; --tls-verify=false allows it")))
            }
        }
    }

    fn led(&self, why: String) -> RegistryError {
        RegistryError::Unreachable { host: self.own.clone(), why }
    }
}

fn send_once(
    agent: &Agent,
    sent: &Sent<'_>,
    url: &str,
    authorization: Option<&str>,
    body: Option<MakeBody<'_>>,
) -> std::result::Result<Response<Body>, Failed> {
    let mut request = Request::builder().method(sent.method.clone()).uri(url);
    for (name, value) in sent.headers {
        request = request.header(name, value);
    }
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let bad = |error: ureq::http::Error| Failed::Http(ureq::Error::Http(error));
    let answered = match body {
        Some(make) => {
            let (reader, size) = make()?;
            let request = request.header(header::CONTENT_LENGTH, size);
            agent.run(request.body(SendBody::from_owned_reader(reader)).map_err(bad)?)
        }
        None => agent.run(request.body(()).map_err(bad)?),
    };
    answered.map_err(|error| match error {
        // What is sent couldn't be read.
        ureq::Error::Io(error) => match error.downcast::<RegistryError>() {
            Ok(own) => Failed::Own(own),
            Err(error) => Failed::Http(ureq::Error::Io(error)),
        },
        error => Failed::Http(error),
    })
}

fn place_of(url: &str) -> Result<Place> {
    let uri: Option<Uri> = url.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    let is_plain = |host: &str| !host.is_empty() && !host.starts_with('.');
    match parts {
        Some((scheme @ ("http" | "https"), authority))
            if is_plain(authority.host()) && !authority.as_str().contains('@') =>
        {
            let is_tls = scheme == "https";
            let usual = if is_tls { 443 } else { 80 };
            let mut host = authority.host().to_ascii_lowercase();
            if let Some(port) = authority.port_u16().filter(|&port| port != usual) {
                host = format!("{host}:{port}");
            }
            Ok(Place { is_tls, host })
        }
        _ => {
            let why = io::Error::new(io::ErrorKind::InvalidInput, "this is no address");
            Err(RegistryError::Unreachable { host: url.escape_debug().to_string(), why: why.to_string() })
        }
    }
}

/// Tells whether two addresses lead to the same host in the same way.
pub(super) fn is_same_place(one: &str, other: &str) -> bool {
    matches!((place_of(one), place_of(other)), (Ok(one), Ok(other)) if one == other)
}

/// Tells where an answer leads that is none itself. What a body was sent with is sent again only where that is meant.
fn leads_to(method: &Method, response: &Response<Body>) -> Option<String> {
    let follows = match response.status().as_u16() {
        307 | 308 => true,
        301..=303 => method == Method::GET || method == Method::HEAD,
        _ => false,
    };
    let location = response.headers().get(header::LOCATION).filter(|_| follows)?;
    Some(location.to_str().ok()?.to_owned())
}

/// Returns a place that a server names: whole, or as seen from another one (RFC 3986).
pub(super) fn resolved(from: &str, location: &str) -> String {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.to_owned();
    }
    let (scheme, rest) = from.split_once("://").unwrap_or(("https", from));
    if location.starts_with("//") {
        return format!("{scheme}:{location}");
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    if location.is_empty() || location.starts_with(['?', '#']) {
        return format!("{scheme}://{rest}{location}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if location.starts_with('/') {
        return format!("{scheme}://{host}{location}");
    }
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let joint = if dir.is_empty() { "" } else { "/" };
    format!("{scheme}://{host}/{dir}{joint}{location}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(hosts: &Hosts, own: Tls, url: &str) -> Option<Tls> {
        hosts.tls(&place_of(url).unwrap(), url, own).ok()
    }

    #[test]
    fn what_one_host_is_allowed_no_other_is() {
        let hosts = |verify| Hosts::new("lab:5000", verify, None);
        for (verify, own, url, expected) in [
            (None, Tls::Unverified, "https://lab:5000/x", Some(Tls::Unverified)),
            (None, Tls::Unverified, "https://auth.io/x", Some(Tls::Verified)),
            (None, Tls::Unverified, "https://lab/x", Some(Tls::Verified)),
            (None, Tls::Unverified, "http://auth.io/x", None),
            (None, Tls::Verified, "http://lab:5000/x", None),
            (None, Tls::Plain, "https://auth.io/x", Some(Tls::Verified)),
            (None, Tls::Plain, "http://auth.io/x", Some(Tls::Plain)),
            (None, Tls::Verified, "https://localhost:1/x", Some(Tls::Unverified)),
            (Some(true), Tls::Verified, "https://localhost:1/x", Some(Tls::Verified)),
            (Some(false), Tls::Unverified, "https://auth.io/x", Some(Tls::Unverified)),
            (Some(false), Tls::Unverified, "http://auth.io/x", Some(Tls::Plain)),
        ] {
            assert_eq!(tls(&hosts(verify), own, url), expected, "{verify:?} {own:?} {url}");
        }
    }

    #[test]
    fn a_host_is_the_same_however_it_is_written() {
        for own in ["lab", "LAB", "lab:443", "Lab:443"] {
            let hosts = Hosts::new(own, None, None);
            assert_eq!(tls(&hosts, Tls::Unverified, "https://lab/x"), Some(Tls::Unverified), "{own}");
            assert_eq!(tls(&hosts, Tls::Unverified, "https://lab:444/x"), Some(Tls::Verified), "{own}");
            hosts.agent(own, Tls::Unverified).unwrap();
            hosts.agent("lab", Tls::Unverified).unwrap();
            assert_eq!(hosts.agents.lock().len(), 1, "{own}");
            let base = format!("https://{own}");
            assert!(is_same_place("https://lab/v2/x", &base) && !is_same_place("http://lab/v2/x", &base));
        }
    }

    #[test]
    fn many_hosts_take_no_more_memory_than_a_few() {
        let hosts = Hosts::new("lab", None, None);
        hosts.agent("lab", Tls::Unverified).unwrap();
        for at in 0..3 * MOST_AGENTS {
            hosts.agent(&format!("blobs{at}"), Tls::Unverified).unwrap();
        }
        let agents = hosts.agents.lock();
        assert!(agents.len() <= MOST_AGENTS && agents.contains_key(&("lab".to_owned(), Tls::Unverified)));
    }

    #[test]
    fn places_are_hosts_and_ports() {
        let host = |url: &str| place_of(url).map(|place| place.host).ok();
        assert_eq!(host("https://Q.io:443/x").as_deref(), Some("q.io"));
        assert_eq!(host("http://q.io:443/x").as_deref(), Some("q.io:443"));
        assert_eq!(host("https://[::1]:5000/x").as_deref(), Some("[::1]:5000"));
        for none in ["ftp://q.io/x", "https://u:p@q.io/x", "https:///x", "https://../x", "/x", "x y"] {
            assert_eq!(host(none), None, "{none}");
        }
    }

    #[test]
    fn locations_are_seen_from_where_they_stand() {
        let from = "https://q.io:1/v2/a/blobs?x=/y";
        for (location, expected) in [
            ("http://b.io/z", "http://b.io/z"),
            ("//b.io/z", "https://b.io/z"),
            ("/z?q", "https://q.io:1/z?q"),
            ("z", "https://q.io:1/v2/a/z"),
            ("?last=b", "https://q.io:1/v2/a/blobs?last=b"),
        ] {
            assert_eq!(resolved(from, location), expected);
        }
        assert_eq!(resolved("https://q.io", "z"), "https://q.io/z");
    }
}
