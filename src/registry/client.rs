//! One registry, by the distribution protocol: what can be asked of it. How it is asked is in `asking`.

mod asking;

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::sync::OnceLock;
use std::thread;

use parking_lot::Mutex;
use serde::Deserialize;
use ureq::http::{Method, header};

use self::asking::{Asked, Connection};
use super::Access;
use super::credentials::{self, Credentials};
use super::error::{RegistryError, Result};
use super::hosts::{Failed, Hosts, MakeBody, resolved};
use super::proxies::is_loopback;
use super::settings::Endpoint;
use super::transport::{TRIES, is_passing, is_passing_status, pause, read_small};
use crate::image::digest::Digest;
use crate::image::document::MAX_DOCUMENT;

/// What a manifest may be.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
/// No list of tags is longer, or takes more bytes, or has more pages.
const MOST_TAGS: usize = 1_000_000;
const MOST_TAG_BYTES: usize = 64 << 20;
const MOST_PAGES: usize = 10_000;

/// A repository of a registry, and who speaks to it.
pub struct Client {
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    insecure: bool,
    hosts: Hosts,
    connection: OnceLock<Connection>,
    /// The answers to its challenges, by scope.
    authorizations: Mutex<HashMap<String, String>>,
}

/// An upload that a registry has begun: where it goes on.
#[derive(Debug)]
pub(super) struct Upload(String);

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

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
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

    /// Does as [`Client::new`], with credentials that are not kept anywhere.
    pub fn with(endpoint: Endpoint, access: &Access, credentials: Option<Credentials>) -> Client {
        let insecure = match access.verify {
            Some(verify) => !verify,
            None => endpoint.insecure || is_loopback(&endpoint.host),
        };
        let hosts = Hosts::new(&endpoint.host, access.verify, access.cert_dir.clone());
        Client {
            endpoint,
            credentials,
            insecure,
            hosts,
            connection: OnceLock::new(),
            authorizations: Mutex::default(),
        }
    }

    /// Returns the host.
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// Returns the repository.
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

    /// Tells whether the registry has a blob.
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
        let url_asked = url.clone();
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
                Ok(Some(resolved(&url_asked, location)))
            }
            _ => Err(self.refused(&what, &mut response)),
        }
    }

    /// Takes a blob over from another repository of the same registry; `None` when it has. Else it wants to have it sent, to
    /// the upload that it has begun for that.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn mount_blob(&self, digest: &Digest, from: &str) -> Result<Option<Upload>> {
        Ok(self.begin_upload(digest, Some(from))?.map(Upload))
    }

    /// Gives up an upload, so that the registry needn't wait for it.
    pub(super) fn give_up(&self, upload: &Upload) {
        let scope = self.scope("pull,push");
        let (method, url, what) = (Method::DELETE, upload.0.clone(), "upload");
        if let Err(error) = self.ask(&Asked { method, url, scope: &scope, headers: &[], what }, None) {
            log::debug!("{error}");
        }
    }

    /// Sends a blob in one piece, to an upload that has begun or to a new one.
    ///
    /// # Errors
    /// When the registry doesn't take it.
    pub(super) fn send_blob(
        &self,
        digest: &Digest,
        mut begun: Option<Upload>,
        body: MakeBody<'_>,
    ) -> Result<()> {
        let what = format!("upload of {digest}");
        // What an upload has begun can't be sent twice: each try is an upload of its own.
        for tried in 1.. {
            let location = match begun.take() {
                Some(Upload(location)) => Some(location),
                None => self.begin_upload(digest, None)?,
            };
            let Some(location) = location else { return Ok(()) };
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
        let mut list = TagList::default();
        let mut next = Some(self.url("tags/list?n=1000")?);
        while let Some(url) = next {
            let asked = Asked { method: Method::GET, url, scope: &scope, headers: &[], what: &what };
            let mut response = self.ask(&asked, None)?;
            if response.status().as_u16() != 200 {
                return Err(self.refused(&what, &mut response));
            }
            let link = response.headers().get(header::LINK).and_then(|value| value.to_str().ok());
            next = link.and_then(next_page).map(|next| resolved(&asked.url, next));
            let wrong =
                |why: String| RegistryError::Wrong { what: what.clone(), host: self.host().to_owned(), why };
            let body =
                read_small(response.body_mut(), MAX_DOCUMENT).map_err(|error| wrong(error.to_string()))?;
            let page: Page = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
            // An empty page leads nowhere.
            if !list.add(page.tags.unwrap_or_default()).map_err(wrong)? {
                break;
            }
        }
        Ok(list.tags)
    }

    fn url(&self, rest: &str) -> Result<String> {
        Ok(format!("{}/v2/{}/{rest}", self.connection()?.base, self.endpoint.path))
    }

    fn scope(&self, actions: &str) -> String {
        format!("repository:{}:{actions}", self.endpoint.path)
    }
}

/// Tags as they come, page by page.
#[derive(Default)]
struct TagList {
    tags: Vec<String>,
    bytes: usize,
    pages: usize,
}

impl TagList {
    /// Adds a page; false when it has none.
    fn add(&mut self, page: Vec<String>) -> std::result::Result<bool, String> {
        self.pages += 1;
        self.bytes += page.iter().map(String::len).sum::<usize>();
        if self.pages > MOST_PAGES || self.bytes > MOST_TAG_BYTES || self.tags.len() + page.len() > MOST_TAGS
        {
            return Err("a list of tags without an end".to_owned());
        }
        let more = !page.is_empty();
        self.tags.extend(page);
        Ok(more)
    }
}

/// Returns the next page by a `Link` header (RFC 8288): `<URL>; rel="next"`, perhaps one of several.
fn next_page(link: &str) -> Option<&str> {
    let mut rest = link;
    loop {
        let (url, after) = rest.trim_start().strip_prefix('<')?.split_once('>')?;
        // No relation has a comma or a `<` in its name.
        let (parameters, more) = after.split_once(",").unwrap_or((after, ""));
        let is_next = |parameter: &str| {
            let (key, value) = parameter.split_once('=').unwrap_or_default();
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            key.trim().eq_ignore_ascii_case("rel") && relations.any(|one| one.eq_ignore_ascii_case("next"))
        };
        if parameters.split(';').any(is_next) {
            return Some(url);
        }
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tags_end() {
        let mut pages = TagList::default();
        assert!((0..=MOST_PAGES).any(|at| pages.add(vec![at.to_string()]).is_err()));
        let mut bytes = TagList::default();
        assert!((0..100).any(|_| bytes.add(vec!["x".repeat(1 << 20)]).is_err()));
        assert!(bytes.tags.len() <= 64);
        let mut few = TagList::default();
        assert_eq!((few.add(vec!["a".to_owned()]), few.add(Vec::new())), (Ok(true), Ok(false)));
    }

    #[test]
    fn pages_follow_links() {
        assert_eq!(
            next_page("</v2/x/tags/list?last=b&n=2>; rel=\"next\""),
            Some("/v2/x/tags/list?last=b&n=2")
        );
        assert_eq!(next_page("</v2/x>; rel=\"prev\""), None);
        assert_eq!(next_page("<?last=b>; title=\"x\"; rel=next"), Some("?last=b"));
        assert_eq!(next_page("</a>; rel=\"prev\", </b>; rel=\"last next\""), Some("/b"));
        assert_eq!(next_page("</v2/x>; title=\"next\""), None);
        assert_eq!(next_page("x"), None);
    }
}
