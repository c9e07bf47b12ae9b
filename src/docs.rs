//! How a union filesystem works, in this source.
//!
//! A chapter to read from top to bottom. It goes from the model to the code; every piece of code in it is run by the
//! tests. Who would rather watch first: `unionmount demo`.
//!
//! # 1. The model
//!
//! A **stack** is an ordered list of **layers**, each a plain directory: read-only **lowers**, and at most one writable
//! **upper** on top. The **merged** view shows, for every path, the topmost entry that no layer above it hides. Four rules
//! say what hides what:
//!
//! 1. What is not a directory ends the search: it is the entry.
//! 2. Directories of the same path are merged: names of both are seen.
//! 3. A **whiteout** ends the search with nothing: deleted here.
//! 4. An **opaque** directory ends it at itself: what is below doesn't count.
//!
//! That is the whole of it. A container image is a stack of lowers, a container is an image and an upper, and a commit
//! makes a lower of the upper.
//!
//! # 2. Opening a stack
//!
//! [`Stack::open`](crate::union::stack::layer::Stack::open) opens each layer once and checks what can be checked: that no layer
//! lies in another, what the upper's filesystem can do, that nobody else has the upper. From then on no path is resolved
//! as a string: every access is a directory's descriptor and one name (the [`sys`](crate::sys) module), so that neither
//! `..` nor a symbolic link leads out of a layer. [`Union::new`](crate::union::Union::new) makes the merged view of it;
//! no mount is needed to use it:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let top = tempfile::tempdir_in(".")?;
//! # let at = |path: &str| top.path().join(path);
//! # for dir in ["base/etc", "app/etc"] { std::fs::create_dir_all(at(dir))?; }
//! use unionmount::union::stack::layer::{LowerSource, Stack, StackOptions};
//! use unionmount::union::{Limits, Union};
//!
//! std::fs::write(at("base/etc/os"), "debian")?;
//! std::fs::write(at("base/etc/app.conf"), "port = 80")?;
//! std::fs::write(at("app/etc/app.conf"), "port = 8080")?;
//!
//! let lowers = LowerSource::directories([at("app"), at("base")]); // the first is the topmost
//! let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() })?;
//! let union = Union::new(stack, Limits::default())?;
//!
//! let (etc, _) = union.lookup(union.root(), b"etc")?.expect("both have it");
//! let (conf, _) = union.lookup(&etc, b"app.conf")?.expect("both have it");
//! let mut text = [0; 64];
//! let read = union.read(&conf, 0, &mut text)?;
//! assert_eq!(&text[..read], b"port = 8080"); // rule 1
//! assert!(union.lookup(&etc, b"os")?.is_some()); // rule 2
//! # Ok(()) }
//! ```
//!
//! # 3. Lookup
//!
//! A directory of the merged view knows which real directories it is made of. To find a name in it, those are asked from
//! the top down, and the four rules say when to stop: that is the loop of the [`resolve`](crate::union::lookup::resolve)
//! module. Its answer is a leaf in one layer, or a directory that is merged again of several
//! ([`FoundKind`](crate::union::lookup::found::FoundKind)). Whiteouts and opaque marks have several spellings, by who wrote the layer;
//! [`marker`](crate::union::lookup::marker) is the one place that knows them. Most names that programs look for don't exist, so a
//! directory's names are soon held in an [`index`](crate::union::lookup::index), which answers without a system call and serves
//! listings too. Lookup and listing use one classifier, so a name is listed exactly when it resolves.
//!
//! ```
//! use unionmount::union::lookup::marker::{AufsName, aufs_name};
//!
//! assert_eq!(aufs_name(b".wh.motd"), AufsName::Whiteout(b"motd")); // motd is deleted here
//! assert_eq!(aufs_name(b".wh..wh..opq"), AufsName::Opaque); // and this directory is opaque
//! assert_eq!(aufs_name(b"motd"), AufsName::Plain);
//! ```
//!
//! What was found becomes a [`Node`](crate::union::nodes::node::Node): the object that the kernel knows by its number, as long as
//! it remembers it. A node holds no descriptor. It knows its parent and its name, so a million of them cost memory only,
//! and a rename of a directory changes one pointer.
//!
//! # 4. The first write: copy-up
//!
//! A lower never changes. The first change to something in it copies it to the upper, in three phases that
//! [`copy_up`](crate::union::change::copy_up) keeps apart:
//!
//! - **prepare**: an object in the workdir, where nobody sees it
//!   ([`Upper::stage`](crate::union::change::upper::Upper::stage));
//! - **fill**: data with their holes, then owner, mode, attributes and times, in the order in which none undoes another;
//! - **publish**: one rename or link puts it under its name ([`Staged::publish`](crate::union::change::staged::Staged::publish)).
//!
//! Whoever looks sees the lower's object or the whole copy, never a half; killed at any instant, the same holds after the
//! next mount. Files that were open before follow the copy ([`file`](mod@crate::union::data::file)). The number of the file stays
//! that of its origin, which the copy remembers ([`links`](crate::union::hardlinks::links)).
//!
//! # 5. Deleting
//!
//! To delete what a lower shows, something must be written: a whiteout, by
//! [`Upper::whiteout`](crate::union::change::upper::Upper::whiteout). Where the upper has an entry of that name, the whiteout takes
//! its place in one step, so that what is below never shines through for an instant. A directory made where a whiteout
//! is becomes opaque; a merged directory that is renamed carries a *redirect*, the name that the layers below know it by.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let top = tempfile::tempdir_in(".")?;
//! # let at = |path: &str| top.path().join(path);
//! # for dir in ["base", "rw"] { std::fs::create_dir(at(dir))?; }
//! # std::fs::write(at("base/motd"), "hello")?;
//! # use unionmount::union::stack::layer::{Stack, StackOptions};
//! # use unionmount::union::{Limits, Union};
//! let options = StackOptions { lowers: vec![at("base").into()], upper: Some(at("rw")), ..StackOptions::default() };
//! let union = Union::new(Stack::open(&options)?, Limits::default())?;
//! union.unlink(union.root(), b"motd")?;
//!
//! assert!(union.lookup(union.root(), b"motd")?.is_none()); // gone …
//! assert!(at("base/motd").exists()); // … and still there,
//! assert!(std::fs::symlink_metadata(at("rw/motd")).is_ok() || at("rw/.wh.motd").exists()); // below a whiteout
//! # Ok(()) }
//! ```
//!
//! Only the [`upper`](crate::union::change::upper) module has methods that write, so that writing to a lower doesn't compile.
//!
//! # 6. What the layers hide
//!
//! A lookup stops where it knows the answer. [`provenance`](crate::union::lookup::provenance) goes on, for one path: what each
//! layer has, and what hides it; that is `unionmount explain`. The [`survey`](crate::explain::survey) does so for all paths
//! of a stack: `unionmount layers`. What is hidden is what an image carries in vain:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let top = tempfile::tempdir_in(".")?;
//! # let at = |path: &str| top.path().join(path);
//! # for dir in ["base", "app"] { std::fs::create_dir(at(dir))?; }
//! use unionmount::explain::figures::Figures;
//! use unionmount::explain::survey::{Survey, LayerAction};
//! # use unionmount::union::stack::layer::{LowerSource, Stack, StackOptions};
//!
//! std::fs::write(at("base/motd"), "hello")?;
//! std::fs::write(at("base/keep"), "1234567890")?;
//! std::fs::write(at("app/.wh.motd"), "")?; // a whiteout, as in the tars of images
//!
//! let lowers = LowerSource::directories([at("app"), at("base")]);
//! let survey = Survey::take(Stack::open(&StackOptions { lowers, ..StackOptions::default() })?, false)?;
//! let motd = survey.find(b"motd").expect("a layer has it");
//! let [whiteout, hidden] = survey.holdings(motd) else { panic!("two layers have the name") };
//! assert_eq!(whiteout.what(), LayerAction::Deleted);
//! assert_eq!(hidden.hidden_by, Some(whiteout.layer));
//! assert!(survey.shown(motd, survey.top()).is_none());
//! assert_eq!(Figures::of(&survey).wasted_bytes, 5);
//! # Ok(()) }
//! ```
//!
//! # 7. The mount
//!
//! The kernel asks by FUSE: "what is `os` in directory 1?", "read 4096 bytes of 17". The
//! [`session`](crate::fuse::session) reads a question, [`wire`](crate::fuse::wire) understands it, and the
//! [`adaptor`](crate::fuse::adaptor) asks the union and replies; it decides nothing about layers. A question costs two context switches, an answer that the kernel remembers costs nothing. As the lowers
//! never change and the upper is changed by this mount alone, the kernel may keep answers for ever
//! ([`policy`](crate::fuse::policy)).
//! Data need not pass through the daemon either: with `-o passthrough` an open of a file whose data can't move any more
//! hands the real file to the kernel; with `passthrough=lower` any open does, and who has it open when it is copied up is left behind
//! (`src/fuse/node_id.rs`). One file has one way of being open at a time, which `src/fuse/io_mode.rs` chooses.
//!
//! # 8. Images and containers
//!
//! A layer of an image is a tar, in which whiteouts are files named `.wh.NAME`. [`image::layer`](crate::image::layer)
//! turns it into a directory of the kind above and back; [`image::store`](crate::image::store) keeps each layer once,
//! known by its digest, however many images and containers use it. A [`container`](crate::container) is a list of
//! layers, an upper and a mount. [`commit`](crate::container::commit) makes a tar of the upper and names it in a new
//! image: the upper has become a layer.
