//! What a registry asks for before it answers: basic authentication, or a token that another server gives for what is to
//! be done.
//!
//! Distribution's token authentication: <https://distribution.github.io/distribution/spec/auth/token/>.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::Body;
use ureq::http::{HeaderMap, Method, Response, header};

use super::credentials::Credentials;
use super::error::RegistryError;
use super::hosts::{BodyIs, MakeBody, Sent};
use super::transport::read_small;

/// No answer of a token server is longer.
const LONGEST_ANSWER: u64 = 1 << 20;

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, and who gives it.
    Bearer {
        /// The token server.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
        /// For what, where the registry says it.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the challenge out of an answer with the status 401.
    pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let mut basic = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            let Ok(challenges) = http_auth::parse_challenges(value.to_str().unwrap_or_default()) else {
                continue;
            };
            for challenge in challenges {
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Challenge::Basic);
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    continue;
                }
                let parameter = |name: &str| {
                    let (_, value) =
                        challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(value.to_unescaped())
                };
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: parameter("service"),
                        scope: parameter("scope"),
                    });
                }
            }
        }
        basic
    }
}

/// What a token server answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Token {
    token: String,
    access_token: String,
}

/// Why there is no answer to a challenge.
#[derive(Debug)]
pub(super) enum Refused {
    /// Who the user is, or what is to be done, is refused; in words.
    Said(String),
    /// The token server can't be asked, or gives no token.
    Failed(RegistryError),
}

impl Refused {
    /// Reads it out of an answer of a token server. Only 401 and 403 say that somebody may not.
    fn of_answer(realm: &str, status: u16, body: &[u8]) -> Refused {
        let said = super::error::said(body);
        match status {
            401 | 403 => Refused::Said(format!("its token server answers {status}{said}")),
            _ => {
                let (what, host) = ("token".to_owned(), realm.to_owned());
                Refused::Failed(RegistryError::Answer { what, host, status, said })
            }
        }
    }
}

/// How a token server is asked.
pub(super) type Send<'a> =
    &'a dyn Fn(&Sent<'_>, Option<MakeBody<'_>>) -> Result<Response<Body>, RegistryError>;

/// Returns the value of the header that answers a challenge; `None` when the user has nothing to answer it with.
///
/// # Errors
/// When the token server fails, or refuses.
pub(super) fn answer(
    send: Send<'_>,
    challenge: &Challenge,
    credentials: Option<&Credentials>,
    scope: &str,
    plain: bool,
) -> Result<Option<String>, Refused> {
    match (challenge, credentials) {
        (Challenge::Basic, Some(Credentials::Password { user, password })) => Ok(Some(basic(user, password))),
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service, scope: wanted }, credentials) => {
            // Who speaks TLS to a registry gives no password away without.
            if !plain && !realm.starts_with("https://") {
                return Err(Refused::Failed(RegistryError::Unreachable {
                    host: realm.escape_debug().to_string(),
                    why: "this token server doesn't speak TLS, which would give away who asks; --tls-verify=false allows it"
                        .to_owned(),
                }));
            }
            let scope = if scope.is_empty() { wanted.as_deref().unwrap_or_default() } else { scope };
            token(send, realm, service.as_deref(), scope, credentials).map(Some)
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn token(
    send: Send<'_>,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<String, Refused> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut query = Vec::new();
    query.extend(service.map(|service| format!("service={}", encoded(service))));
    query.extend(scope.split(' ').filter(|one| !one.is_empty()).map(|one| format!("scope={}", encoded(one))));
    let answered = match credentials {
        Some(Credentials::IdentityToken(refresh)) => {
            // The form of OAuth 2, which takes all scopes in one.
            let mut form = vec!["grant_type=refresh_token".to_owned(), "client_id=unionmount".to_owned()];
            form.extend(service.map(|service| format!("service={}", encoded(service))));
            form.push(format!("scope={}", encoded(scope)));
            form.push(format!("refresh_token={}", encoded(refresh)));
            let form = form.join("&").into_bytes();
            let headers = [(header::CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned())];
            let (method, authorization, body) = (Method::POST, None, BodyIs::Secret);
            let sent = Sent { method, url: realm, headers: &headers, authorization, body };
            let mut body = || {
                let size = form.len() as u64;
                Ok((Box::new(io::Cursor::new(form.clone())) as Box<dyn io::Read + std::marker::Send>, size))
            };
            send(&sent, Some(&mut body))
        }
        credentials => {
            let joint = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{joint}{}", query.join("&"));
            let authorization = match credentials {
                Some(Credentials::Password { user, password }) => Some(basic(user, password)),
                _ => None,
            };
            let authorization = authorization.as_deref();
            let (method, body) = (Method::GET, BodyIs::Anybodys);
            send(&Sent { method, url: &url, headers: &[], authorization, body }, None)
        }
    };
    let mut response = answered.map_err(Refused::Failed)?;
    let status = response.status().as_u16();
    let no_token = |why: String| {
        let (what, host) = ("token".to_owned(), realm.to_owned());
        Refused::Failed(RegistryError::Wrong { what, host, why })
    };
    let body =
        read_small(response.body_mut(), LONGEST_ANSWER).map_err(|error| no_token(error.to_string()))?;
    if status != 200 {
        return Err(Refused::of_answer(realm, status, &body));
    }
    let token: Token = serde_json::from_slice(&body).map_err(|error| no_token(error.to_string()))?;
    let token = if token.token.is_empty() { token.access_token } else { token.token };
    match token.is_empty() || token.contains(|c: char| c.is_control()) {
        true => Err(no_token("there is none in it".to_owned())),
        false => Ok(format!("Bearer {token}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        });
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read() {
        assert_eq!(challenge(&[]), None);
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["\"\"", "Negotiate"]), None);
        let bearer = Challenge::Bearer {
            realm: "https://a.io/t".to_owned(),
            service: Some("a.io".to_owned()),
            scope: Some("repository:x:pull,push".to_owned()),
        };
        let text = r#"Bearer realm="https://a.io/t",service="a.io",scope="repository:x:pull,push""#;
        assert_eq!(challenge(&[text]), Some(bearer.clone()));
        assert_eq!(challenge(&["Basic realm=\"x\"", text]), Some(bearer));
    }

    #[test]
    fn no_password_leaves_tls() {
        let bearer =
            Challenge::Bearer { realm: "http://127.0.0.1:1/t".to_owned(), service: None, scope: None };
        let mine = Credentials::Password { user: "u".to_owned(), password: "p".to_owned() };
        let nobody: Send<'_> = &|_, _| panic!("it is asked");
        let Err(Refused::Failed(refused)) = answer(nobody, &bearer, Some(&mine), "", false) else { panic!() };
        assert!(refused.to_string().contains("doesn't speak TLS"), "{refused}");
        assert!(!refused.is_absence(), "what can't be asked may have it");
    }

    #[test]
    fn only_a_clear_no_of_a_token_server_is_one() {
        for (status, is_no) in
            [(400, false), (401, true), (403, true), (404, false), (408, false), (425, false), (429, false)]
        {
            let refused = Refused::of_answer("https://a.io/t", status, b"");
            assert_eq!(matches!(refused, Refused::Said(_)), is_no, "{status}: {refused:?}");
        }
    }
}
