//! Asking one registry: how it speaks, who asks, and when to ask again.

use std::thread;

use ureq::Body;
use ureq::http::{Method, Response, header};

use super::Client;
use crate::registry::auth::{Challenge, Refused, answer};
use crate::registry::error::{RegistryError, Result, said};
use crate::registry::hosts::{BodyIs, Came, Failed, MakeBody, Sent, is_same_place};
use crate::registry::transport::{TRIES, Tls, is_passing, is_passing_status, pause, read_small, why};

/// How the registry turned out to speak.
#[derive(Clone)]
pub(super) struct Connection {
    /// Scheme and host.
    pub(super) base: String,
    tls: Tls,
}

/// What a request asks for.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    /// What the token must allow.
    pub(super) scope: &'a str,
    pub(super) headers: &'a [(header::HeaderName, String)],
    /// For messages.
    pub(super) what: &'a str,
}

impl Client {
    /// Finds out how the registry speaks: with TLS, or, where that is allowed, without.
    pub(super) fn connection(&self) -> Result<&Connection> {
        if let Some(known) = self.connection.get() {
            return Ok(known);
        }
        let host = &self.endpoint.host;
        let try_with = |tls: Tls| -> Result<std::result::Result<Connection, ureq::Error>> {
            let agent = self.hosts.agent(host, tls)?;
            let scheme = if tls == Tls::Plain { "http" } else { "https" };
            let base = format!("{scheme}://{host}");
            let answered = agent.get(format!("{base}/v2/")).call();
            Ok(answered.map(|_| Connection { base, tls }))
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

    pub(super) fn unreachable(&self, error: &ureq::Error) -> RegistryError {
        RegistryError::Unreachable { host: self.host().to_owned(), why: why(error) }
    }

    /// Asks until there is an answer that won't be another one by waiting.
    pub(super) fn ask(&self, asked: &Asked<'_>, mut body: Option<MakeBody<'_>>) -> Result<Response<Body>> {
        patiently(asked.what, self.host(), || {
            self.ask_once(asked, body.as_mut().map(|body| &mut **body as MakeBody<'_>))
        })
    }

    /// Asks once, and once more when the registry wants to know who asks.
    pub(super) fn ask_once(
        &self,
        asked: &Asked<'_>,
        mut body: Option<MakeBody<'_>>,
    ) -> std::result::Result<Response<Body>, Failed> {
        // What the user may be told of: others may ask at the same time, and get the answer to the challenge first.
        let sent = match self.is_own(&asked.url)? {
            true => self.authorizations.lock().get(asked.scope).cloned(),
            false => None,
        };
        let came =
            self.send(asked, sent.as_deref(), body.as_mut().map(|body| &mut **body as MakeBody<'_>))?;
        let response = came.response;
        // Where a registry's blobs lie, nobody has a right to ask who the user is.
        if response.status().as_u16() != 401 || came.is_foreign || !self.is_own(&asked.url)? {
            return Ok(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        let tls = self.connection()?.tls;
        let send = |sent: &Sent<'_>, mut body: Option<MakeBody<'_>>| {
            patiently("token", sent.url.split('?').next().unwrap_or_default(), || {
                let body = body.as_mut().map(|body| &mut **body as MakeBody<'_>);
                Ok(self.hosts.send(sent, tls, body)?.response)
            })
        };
        let answered = answer(&send, &challenge, self.credentials.as_ref(), asked.scope, tls == Tls::Plain);
        let authorization = answered.map_err(|refused| match refused {
            Refused::Said(why) => self.denied(asked.what, format!(": {why}")),
            Refused::Failed(error) => error,
        })?;
        let Some(authorization) = authorization else { return Ok(response) };
        self.authorizations.lock().insert(asked.scope.to_owned(), authorization.clone());
        if sent.as_deref() == Some(&authorization) {
            return Ok(response);
        }
        Ok(self.send(asked, Some(&authorization), body)?.response)
    }

    /// Tells whether a place belongs to the registry: others are told nothing of the user.
    fn is_own(&self, url: &str) -> Result<bool> {
        Ok(is_same_place(url, &self.connection()?.base))
    }

    fn send(
        &self,
        asked: &Asked<'_>,
        authorization: Option<&str>,
        body: Option<MakeBody<'_>>,
    ) -> std::result::Result<Came, Failed> {
        let Asked { method, url, headers, .. } = asked;
        let sent = Sent { method: method.clone(), url, headers, authorization, body: BodyIs::Anybodys };
        self.hosts.send(&sent, self.connection()?.tls, body)
    }

    /// Says what an answer means that is no success.
    pub(super) fn refused(&self, what: &str, response: &mut Response<Body>) -> RegistryError {
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
        let is_anonymous = self.credentials.is_none();
        RegistryError::Denied { what: what.to_owned(), host, said, way_out, is_anonymous }
    }
}

/// Asks until there is an answer that won't be another one by waiting.
fn patiently(
    what: &str,
    host: &str,
    mut once: impl FnMut() -> std::result::Result<Response<Body>, Failed>,
) -> Result<Response<Body>> {
    let mut tried = 1;
    loop {
        let wait = match once() {
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
                    return Err(RegistryError::Unreachable { host: host.to_owned(), why: why(&error) });
                }
                pause(tried, None).unwrap_or_default()
            }
        };
        log::debug!("{what}: {host} doesn't answer well; once more in {wait:?}");
        thread::sleep(wait);
        tried += 1;
    }
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
}
