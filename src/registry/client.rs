//! One registry, by the distribution protocol.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

use parking_lot::Mutex;
use serde::Deserialize;
use ureq::http::{Method, Request, Response, header};
use ureq::{Agent, Body, SendBody};

use super::Access;
use super::auth::{Challenge, answer};
use super::credentials::{self, Credentials};
use super::error::{RegistryError, Result};
use super::settings::Endpoint;
use super::transport::{
    TRIES, Tls, agent, is_loopback, is_passing, is_passing_status, pause, read_small, why,
};
use crate::image::digest::Digest;
use crate::image::document::MAX_DOCUMENT;

/// What a manifest may be.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
/// No list of tags is longer.
const MOST_TAGS: usize = 1_000_000;

/// A repository of a registry, and who speaks to it.
pub struct Client {
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    insecure: bool,
    cert_dir: Option<PathBuf>,
    connection: OnceLock<Connection>,
    /// The answers to its challenges, by scope.
    authorizations: Mutex<HashMap<String, String>>,
}

/// How the registry turned out to speak.
#[derive(Clone)]
struct Connection {
    agent: Agent,
    base: String,
    tls: Tls,
}

/// A manifest or an index as it came.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// Its type, as the registry says.
    pub media_type: String,
}

/// What is sent along with a request. It is made anew for every try.
pub(super) type MakeBody<'a> = &'a mut dyn FnMut() -> Result<(Box<dyn Read + Send>, u64)>;

/// What a request asks for.
struct Asked<'a> {
    method: Method,
    url: String,
    /// What the token must allow.
    scope: &'a str,
    headers: &'a [(header::HeaderName, String)],
    /// For messages.
    what: &'a str,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// What a registry says of an error, after a colon and a space.
pub(super) fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Error {
        code: String,
        message: String,
    }
    let parsed: Option<Errors> = serde_json::from_slice(body).ok();
    let first = parsed.and_then(|parsed| parsed.errors.into_iter().next()).unwrap_or_default();
    let text = if first.message.is_empty() { first.code } else { first.message };
    // Foreign words go onto a terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

impl Client {
    /// Prepares to speak to a registry; nothing is asked yet.
    ///
    /// # Errors
    /// When the user's credentials can't be read.
    pub fn new(endpoint: Endpoint, access: &Access) -> Result<Client> {
        let key = if endpoint.host == "registry-1.docker.io" { "docker.io" } else { &endpoint.host };
        let credentials = credentials::find(access.authfile.as_deref(), key, &endpoint.path)?;
        Ok(Client::with(endpoint, access, credentials))
    }

    /// As [`Client::new`], with credentials that are not kept anywhere.
    pub fn with(endpoint: Endpoint, access: &Access, credentials: Option<Credentials>) -> Client {
        let insecure = match access.verify {
            Some(verify) => !verify,
            None => endpoint.insecure || is_loopback(&endpoint.host),
        };
        Client {
            endpoint,
            credentials,
            insecure,
            cert_dir: access.cert_dir.clone(),
            connection: OnceLock::new(),
            authorizations: Mutex::default(),
        }
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// The repository.
    pub fn path(&self) -> &str {
        &self.endpoint.path
    }

    /// Asks whether the registry is one, and takes the user's credentials.
    ///
    /// # Errors
    /// When it can't be reached, or refuses them.
    pub fn check(&self) -> Result<()> {
        let what = "login";
        let url = format!("{}/v2/", self.connection()?.base);
        let mut response =
            self.ask(&Asked { method: Method::GET, url, scope: "", headers: &[], what }, None)?;
        match response.status().as_u16() {
            200 => Ok(()),
            _ => Err(self.refused(what, &mut response)),
        }
    }

    /// Fetches a manifest or an index by tag or digest. Of a digest, the content is checked.
    ///
    /// # Errors
    /// When there is none, it is larger than any is, or not what was asked for.
    pub fn manifest(&self, reference: &str) -> Result<Document> {
        let what = format!("{}:{reference}", self.endpoint.path);
        let headers = [(header::ACCEPT, MANIFESTS.to_owned())];
        let url = self.url(&format!("manifests/{reference}"))?;
        let scope = self.scope("pull");
        let asked = Asked { method: Method::GET, url, scope: &scope, headers: &headers, what: &what };
        let mut response = self.ask(&asked, None)?;
        if response.status().as_u16() != 200 {
            return Err(self.refused(&what, &mut response));
        }
        let text = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let told = text("docker-content-digest");
        let media_type = text("content-type").unwrap_or_default();
        let wrong =
            |why: String| RegistryError::Wrong { what: what.clone(), host: self.host().to_owned(), why };
        let bytes =
            read_small(response.body_mut(), MAX_DOCUMENT).map_err(|error| wrong(error.to_string()))?;
        let digest = Digest::of(&bytes);
        for promised in told.iter().map(String::as_str).chain([reference]) {
            if promised.parse::<Digest>().is_ok_and(|promised| promised != digest) {
                return Err(wrong(format!("its content has the digest {digest} instead of {promised}")));
            }
        }
        if media_type.contains("distribution.manifest.v1+") {
            return Err(wrong(
                "a manifest of schema 1, which Docker gave up in 2017 and this program doesn't read; push the image \
                 again with a newer program"
                    .to_owned(),
            ));
        }
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Document { bytes, digest, media_type })
    }

    /// Begins to read a blob at a place in it. The registry may not know ranges; then the stream begins at 0, which is
    /// told.
    ///
    /// # Errors
    /// When there is none.
    pub fn blob(&self, digest: &Digest, from: u64) -> Result<(Box<dyn Read + Send>, u64)> {
        let what = format!("blob {digest}");
        let headers: Vec<_> =
            (from > 0).then(|| (header::RANGE, format!("bytes={from}-"))).into_iter().collect();
        let url = self.url(&format!("blobs/{digest}"))?;
        let scope = self.scope("pull");
        let asked = Asked { method: Method::GET, url, scope: &scope, headers: &headers, what: &what };
        let mut response = self.ask(&asked, None)?;
        let begins = match response.status().as_u16() {
            200 => 0,
            206 => {
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let start =
                    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                start.unwrap_or(from)
            }
            _ => return Err(self.refused(&what, &mut response)),
        };
        Ok((Box::new(response.into_body().into_reader()), begins))
    }

    /// Whether the registry has a blob.
    ///
    /// # Errors
    /// When it doesn't say.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let what = format!("blob {digest}");
        let url = self.url(&format!("blobs/{digest}"))?;
        let scope = self.scope("pull,push");
        let asked = Asked { method: Method::HEAD, url, scope: &scope, headers: &[], what: &what };
        let mut response = self.ask(&asked, None)?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refused(&what, &mut response)),
        }
    }

    /// Begins an upload; `None` when the registry has taken the blob over from another repository of its own.
    fn begin_upload(&self, digest: &Digest, from: Option<&str>) -> Result<Option<String>> {
        let what = format!("upload of {digest}");
        let mut scope = self.scope("pull,push");
        let mut url = self.url("blobs/uploads/")?;
        if let Some(from) = from {
            url = format!("{url}?mount={digest}&from={from}");
            scope = format!("{scope} repository:{from}:pull");
        }
        let asked = Asked { method: Method::POST, url, scope: &scope, headers: &[], what: &what };
        let mut empty = || Ok((Box::new(std::io::empty()) as Box<dyn Read + Send>, 0));
        let mut response = self.ask(&asked, Some(&mut empty))?;
        match response.status().as_u16() {
            201 => Ok(None),
            202 => {
                let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                let location = location.ok_or_else(|| RegistryError::Wrong {
                    what: what.clone(),
                    host: self.host().to_owned(),
                    why: "no place to send it to".to_owned(),
                })?;
                Ok(Some(self.absolute(location)?))
            }
            _ => Err(self.refused(&what, &mut response)),
        }
    }

    /// Takes a blob over from another repository of the same registry; false when it wants to have it sent.
    ///
    /// # Errors
    /// When it refuses.
    pub fn mount_blob(&self, digest: &Digest, from: &str) -> Result<bool> {
        Ok(self.begin_upload(digest, Some(from))?.is_none())
    }

    /// Sends a blob in one piece.
    ///
    /// # Errors
    /// When the registry doesn't take it.
    pub(super) fn send_blob(&self, digest: &Digest, body: MakeBody<'_>) -> Result<()> {
        let what = format!("upload of {digest}");
        // What an upload has begun can't be sent twice: each try is an upload of its own.
        for tried in 1.. {
            let Some(location) = self.begin_upload(digest, None)? else { return Ok(()) };
            let joint = if location.contains('?') { '&' } else { '?' };
            let headers = [(header::CONTENT_TYPE, "application/octet-stream".to_owned())];
            let scope = self.scope("pull,push");
            let url = format!("{location}{joint}digest={digest}");
            let asked = Asked { method: Method::PUT, url, scope: &scope, headers: &headers, what: &what };
            match self.ask_once(&asked, Some(&mut *body)) {
                Ok(response) if matches!(response.status().as_u16(), 201 | 204) => return Ok(()),
                Ok(mut response) => {
                    let status = response.status().as_u16();
                    let wait = pause(tried, Some(response.headers()));
                    let again = is_passing_status(status) || status == 401;
                    match wait.filter(|_| again && tried < TRIES) {
                        Some(wait) => thread::sleep(wait),
                        None => return Err(self.refused(&what, &mut response)),
                    }
                }
                Err(Failed::Own(error)) => return Err(error),
                Err(Failed::Http(error)) if is_passing(&error) && tried < TRIES => {
                    log::debug!("{what}: {error}; once more");
                    thread::sleep(pause(tried, None).unwrap_or_default());
                }
                Err(Failed::Http(error)) => return Err(self.unreachable(&error)),
            }
        }
        unreachable!("the last try returns")
    }

    /// Sends a manifest; it has then this tag, or none but its digest.
    ///
    /// # Errors
    /// When the registry doesn't take it.
    pub fn send_manifest(&self, reference: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let what = format!("{}:{reference}", self.endpoint.path);
        let headers = [(header::CONTENT_TYPE, media_type.to_owned())];
        let url = self.url(&format!("manifests/{reference}"))?;
        let scope = self.scope("pull,push");
        let asked = Asked { method: Method::PUT, url, scope: &scope, headers: &headers, what: &what };
        let owned = bytes.to_vec();
        let mut body = || {
            let size = owned.len() as u64;
            Ok((Box::new(std::io::Cursor::new(owned.clone())) as Box<dyn Read + Send>, size))
        };
        let mut response = self.ask(&asked, Some(&mut body))?;
        match response.status().as_u16() {
            200..=202 => Ok(()),
            _ => Err(self.refused(&what, &mut response)),
        }
    }

    /// Lists the tags of the repository.
    ///
    /// # Errors
    /// When there is no such repository.
    pub fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let what = self.endpoint.path.clone();
        let scope = self.scope("pull");
        let mut tags = Vec::new();
        let mut next = Some(self.url("tags/list?n=1000")?);
        while let Some(url) = next {
            let asked = Asked { method: Method::GET, url, scope: &scope, headers: &[], what: &what };
            let mut response = self.ask(&asked, None)?;
            if response.status().as_u16() != 200 {
                return Err(self.refused(&what, &mut response));
            }
            let link = response.headers().get(header::LINK).and_then(|value| value.to_str().ok());
            next = link.and_then(next_page).map(|url| self.absolute(url)).transpose()?;
            let wrong =
                |why: String| RegistryError::Wrong { what: what.clone(), host: self.host().to_owned(), why };
            let body =
                read_small(response.body_mut(), MAX_DOCUMENT).map_err(|error| wrong(error.to_string()))?;
            let page: Page = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
            let before = tags.len();
            tags.extend(page.tags.unwrap_or_default());
            if tags.len() == before || tags.len() > MOST_TAGS {
                break;
            }
        }
        Ok(tags)
    }

    fn url(&self, rest: &str) -> Result<String> {
        Ok(format!("{}/v2/{}/{rest}", self.connection()?.base, self.endpoint.path))
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.endpoint.path)
    }

    /// A place that the registry names: whole, or below its own.
    fn absolute(&self, location: &str) -> Result<String> {
        let base = &self.connection()?.base;
        Ok(match location.starts_with("http://") || location.starts_with("https://") {
            true => location.to_owned(),
            false => format!("{base}/{}", location.trim_start_matches('/')),
        })
    }

    /// Finds out how the registry speaks: with TLS, or, where that is allowed, without.
    fn connection(&self) -> Result<&Connection> {
        if let Some(known) = self.connection.get() {
            return Ok(known);
        }
        let host = &self.endpoint.host;
        let cert_dir = self.cert_dir.as_deref();
        let try_with = |tls: Tls| -> Result<std::result::Result<Connection, ureq::Error>> {
            let agent = agent(host, tls, cert_dir)?;
            let scheme = if tls == Tls::Plain { "http" } else { "https" };
            let base = format!("{scheme}://{host}");
            let answered = agent.get(format!("{base}/v2/")).call();
            Ok(answered.map(|_| Connection { agent, base, tls }))
        };
        let mut found = try_with(Tls::Verified)?;
        if found.is_err() && self.insecure {
            for tls in [Tls::Unverified, Tls::Plain] {
                if let Ok(connection) = try_with(tls)? {
                    found = Ok(connection);
                    break;
                }
            }
        }
        let mut tried = 1;
        while let Err(error) = &found {
            if !is_passing(error) || matches!(error, ureq::Error::ConnectionFailed) || tried >= TRIES {
                return Err(self.unreachable(error));
            }
            thread::sleep(pause(tried, None).unwrap_or_default());
            tried += 1;
            found = try_with(Tls::Verified)?;
        }
        match found {
            Ok(connection) => Ok(self.connection.get_or_init(|| connection)),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> RegistryError {
        RegistryError::Unreachable { host: self.host().to_owned(), why: why(error) }
    }

    /// Asks until there is an answer that won't be another one by waiting.
    fn ask(&self, asked: &Asked<'_>, mut body: Option<MakeBody<'_>>) -> Result<Response<Body>> {
        let mut tried = 1;
        loop {
            let wait = match self.ask_once(asked, body.as_mut().map(|body| &mut **body as MakeBody<'_>)) {
                Ok(response) => {
                    let again = is_passing_status(response.status().as_u16()) && tried < TRIES;
                    match pause(tried, Some(response.headers())).filter(|_| again) {
                        Some(wait) => wait,
                        None => return Ok(response),
                    }
                }
                Err(Failed::Own(error)) => return Err(error),
                Err(Failed::Http(error)) => {
                    if !is_passing(&error) || tried >= TRIES {
                        return Err(self.unreachable(&error));
                    }
                    pause(tried, None).unwrap_or_default()
                }
            };
            log::debug!("{}: {} doesn't answer well; once more in {wait:?}", asked.what, self.host());
            thread::sleep(wait);
            tried += 1;
        }
    }

    /// Asks once, and once more when the registry wants to know who asks.
    fn ask_once(
        &self,
        asked: &Asked<'_>,
        mut body: Option<MakeBody<'_>>,
    ) -> std::result::Result<Response<Body>, Failed> {
        // What the user may be told of: others may ask at the same time, and get the answer to the challenge first.
        let sent = match self.is_own(&asked.url)? {
            true => self.authorizations.lock().get(asked.scope).cloned(),
            false => None,
        };
        let response =
            self.send(asked, sent.as_deref(), body.as_mut().map(|body| &mut **body as MakeBody<'_>))?;
        if response.status().as_u16() != 401 || !self.is_own(&asked.url)? {
            return Ok(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        let connection = self.connection()?;
        let plain = connection.tls == Tls::Plain;
        let answered = answer(&connection.agent, &challenge, self.credentials.as_ref(), asked.scope, plain);
        let authorization = answered.map_err(|why| self.denied(asked.what, format!(": {why}")))?;
        let Some(authorization) = authorization else { return Ok(response) };
        self.authorizations.lock().insert(asked.scope.to_owned(), authorization.clone());
        if sent.as_deref() == Some(&authorization) {
            return Ok(response);
        }
        self.send(asked, Some(&authorization), body)
    }

    /// Whether a place belongs to the registry: others are told nothing of the user.
    fn is_own(&self, url: &str) -> Result<bool> {
        let base = &self.connection()?.base;
        Ok(url.strip_prefix(base.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }

    fn send(
        &self,
        asked: &Asked<'_>,
        authorization: Option<&str>,
        body: Option<MakeBody<'_>>,
    ) -> std::result::Result<Response<Body>, Failed> {
        let connection = self.connection()?;
        let mut request = Request::builder().method(asked.method.clone()).uri(&asked.url);
        for (name, value) in asked.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let bad = |error: ureq::http::Error| Failed::Http(ureq::Error::Http(error));
        let sent = match body {
            Some(make) => {
                let (reader, size) = make()?;
                let request = request.header(header::CONTENT_LENGTH, size);
                let request = request.body(SendBody::from_owned_reader(reader)).map_err(bad)?;
                connection.agent.run(request)
            }
            None => connection.agent.run(request.body(()).map_err(bad)?),
        };
        sent.map_err(Failed::Http)
    }

    /// What an answer means that is no success.
    fn refused(&self, what: &str, response: &mut Response<Body>) -> RegistryError {
        let status = response.status().as_u16();
        let body = read_small(response.body_mut(), 1 << 16).unwrap_or_default();
        let said = said(&body);
        let (what, host) = (what.to_owned(), self.host().to_owned());
        match status {
            401 | 403 => self.denied(&what, said),
            404 => RegistryError::NotFound { what, host, said },
            429 => RegistryError::Answer {
                what,
                host,
                status,
                said: format!("{said} (too many requests: try again later, or log in)"),
            },
            status => RegistryError::Answer { what, host, status, said },
        }
    }

    fn denied(&self, what: &str, said: String) -> RegistryError {
        let host = self.host().to_owned();
        let way_out = match self.credentials {
            None => {
                format!("there may be no such image, or it is for those who log in: unionmount login {host}")
            }
            Some(_) => {
                format!("see whether your account may do this, or log in again: unionmount login {host}")
            }
        };
        RegistryError::Denied { what: what.to_owned(), host, said, way_out }
    }
}

/// Why a request has no answer.
enum Failed {
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

/// The next page by a `Link` header (RFC 8288): `<URL>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    parameters.contains("next").then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_one_plain_line() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m such\nthing"}]}"#;
        assert_eq!(said(body), ": no[31m suchthing");
        assert_eq!(said(br#"{"errors":[{"code":"DENIED"}]}"#), ": DENIED");
        assert_eq!(said(b"<html>"), "");
    }

    #[test]
    fn pages_follow_links() {
        assert_eq!(
            next_page("</v2/x/tags/list?last=b&n=2>; rel=\"next\""),
            Some("/v2/x/tags/list?last=b&n=2")
        );
        assert_eq!(next_page("</v2/x>; rel=\"prev\""), None);
        assert_eq!(next_page("x"), None);
    }
}
