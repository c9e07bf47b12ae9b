//! `unionmount verify`: is the store what it should be?

use std::process::ExitCode;

use super::Failure;
use super::output::count;
use super::page::Page;
use super::store::StoreArgs;

/// The exit status when nothing is broken as far as was seen, and something could not be looked at.
const UNCHECKED: u8 = 3;

/// Compute every digest of the store again; say what is broken and how to mend it
///
/// The exit status is 0 when all is well or mended, 1 when something is broken, and 3 when nothing broken was found but
/// something could not be checked: the disk is full, files can't be opened, the disk fails. That is not touched.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    #[command(flatten)]
    store: StoreArgs,

    /// Mend what can be derived; set aside what is broken, so that it is unpacked or loaded again. Nothing is deleted
    #[arg(long)]
    repair: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = match self.store.existing() {
            Err(error) if error.is_shortage() => {
                return Err(Failure::with(UNCHECKED, format!("nothing could be checked: {error}")));
            }
            store => store?,
        };
        let Some(store) = store else {
            Page::of_line(format_args!("{}; all is well", self.store.nothing())).print()?;
            return Ok(ExitCode::SUCCESS);
        };
        let bar = super::progress_bar("checking");
        let verified = store.verify(self.repair, &bar);
        bar.finish_and_clear();
        let mut verified = verified?;
        crate::container::verify::verify(&store, self.repair, &mut verified)?;
        let mut page = Page::default();
        for finding in verified.mended.iter().chain(&verified.findings).chain(&verified.unchecked) {
            page.line(format_args!("{}", finding.what));
            page.line(format_args!("  mend: {}", finding.mend));
        }
        if verified.set_aside > 0 {
            let dir = store.damaged_dir();
            page.line(format_args!(
                "set aside: {}, in {}; look at it, then remove it",
                count(verified.set_aside as u64, "broken thing"),
                dir.display()
            ));
        }
        if verified.unneeded > 0 {
            page.line(format_args!(
                "{} that nothing needs: unionmount prune",
                count(verified.unneeded as u64, "thing")
            ));
        }
        page.line(format_args!(
            "{}, {}, {}: {}",
            count(verified.images as u64, "image"),
            count(verified.layers as u64, "layer"),
            count(verified.blobs as u64, "blob"),
            match (verified.findings.is_empty(), verified.unchecked.is_empty()) {
                (false, _) => "not all is well",
                (true, false) => "nothing broken was found, but not all could be checked",
                (true, true) => "all is well",
            }
        ));
        page.print()?;
        let root = store.root().display();
        match (verified.findings.len(), verified.unchecked.len()) {
            (0, 0) => Ok(ExitCode::SUCCESS),
            (0, some) => {
                let things = count(some as u64, "thing");
                Err(Failure::with(UNCHECKED, format!("{root}: {things} could not be checked")))
            }
            (1, _) => Err(Failure::failed(format!("{root}: 1 thing is broken"))),
            (some, _) => Err(Failure::failed(format!("{root}: {} are broken", count(some as u64, "thing")))),
        }
    }
}
