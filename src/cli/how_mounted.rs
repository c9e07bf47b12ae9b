//! How the mounts of an upper have it, which verbs about one that isn't mounted now are told.

use std::path::PathBuf;

use clap::Args;

use crate::union::stack::layer::XattrChoice;

#[derive(Debug, Args)]
pub(super) struct HowMounted {
    /// The workdir that its mounts have, where it isn't the one beside it
    #[arg(long, value_name = "DIR")]
    pub(super) work: Option<PathBuf>,

    /// Its mounts have the option userxattr
    #[arg(long)]
    userxattr: bool,
}

impl HowMounted {
    /// Tells whether anything was said of it.
    pub(super) fn is_said(&self) -> bool {
        self.work.is_some() || self.userxattr
    }

    /// Returns where the upper's marks are.
    pub(super) fn xattr(&self) -> XattrChoice {
        if self.userxattr { XattrChoice::User } else { XattrChoice::Auto }
    }
}
