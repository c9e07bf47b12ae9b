//! Registries: images come from where others have put them, and go there.
//!
//! ```text
//! pull ──> settings: where a name leads (registries.conf: mirrors, prefixes, what is blocked)
//!   │        └── client: one registry (the distribution protocol: manifests, blobs, tags, uploads)
//!   │              ├── hosts: the registry and where it leads, each with what it is allowed; proxies
//!   │              ├── transport: TLS, when to try again
//!   │              └── auth: what a registry asks for; credentials: what the user has
//!   └── image::load over a RemoteImage: blobs come when they are read, and go on where they broke off (partial)
//! push ──> the same client: what is there already is not sent again
//! ```
//!
//! The protocol is OCI's distribution-spec 1.1 (<https://github.com/opencontainers/distribution-spec>); how names lead to
//! registries is containers-registries.conf(5), where credentials lie containers-auth.json(5) and Docker's config.json.
//!
//! HTTP is `ureq`: this program's layers are read by threads, which a blocking client serves as it is. `oci-client`, which
//! was looked at as well, brings an executor, and hides the header by which a registry says when to come again.

mod auth;
mod client;
pub mod credentials;
mod error;
mod hosts;
mod partial;
mod proxies;
mod pull;
mod push;
mod reference;
mod settings;
mod transport;

pub use self::client::Client;
pub use self::error::{RegistryError, Result};
pub use self::pull::{Pulled, describe, names_in_store, pull};
pub use self::push::{Pushed, push};
pub use self::reference::Reference;
pub use self::settings::{Endpoint, Settings};
pub use self::transport::Tls;

use std::path::PathBuf;

/// How registries are spoken to, by the user's options.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Whether certificates are checked, where the user says so; else the settings tell.
    pub verify: Option<bool>,
    /// The file with credentials, where the user names one.
    pub authfile: Option<PathBuf>,
    /// More certificates.
    pub cert_dir: Option<PathBuf>,
}
