//! `unionmount verify`: is the store what it should be?

use std::process::ExitCode;

use super::store::StoreArgs;
use super::{Failure, print_all};

/// Compute every digest of the store again; say what is broken and how to mend it
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    #[command(flatten)]
    store: StoreArgs,

    /// Remove what is broken, so that it is unpacked or loaded again
    #[arg(long)]
    repair: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let verified = store.verify(self.repair)?;
        let mut text = String::new();
        for finding in &verified.findings {
            text += &format!("{}\n  mend: {}\n", finding.what, finding.mend);
        }
        if verified.unneeded > 0 {
            text += &format!("{} things that nothing needs: unionmount prune\n", verified.unneeded);
        }
        text += &format!(
            "{} images, {} layers, {} blobs: {}\n",
            verified.images,
            verified.layers,
            verified.blobs,
            if verified.findings.is_empty() { "all is well" } else { "not all is well" }
        );
        print_all(text.as_bytes())?;
        match verified.findings.len() {
            0 => Ok(ExitCode::SUCCESS),
            count => Err(Failure::failed(format!("{}: {count} things are broken", store.root().display()))),
        }
    }
}
