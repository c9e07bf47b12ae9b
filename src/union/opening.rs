//! A stack becomes a union: its layers are opened, their roots merged, and what they can do is found out.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::error::{FsError, Result};
use crate::sys::filesystem;
use crate::union::change::carry::LeftOut;
use crate::union::change::judged::ToldDirs;
use crate::union::change::sealing::background::Waiting;
use crate::union::change::upper::Upper;
use crate::union::data::file::Files;
use crate::union::data::halves::Halves;
use crate::union::hardlinks::kept::Hardlinks;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::index::IndexCache;
use crate::union::lookup::marker::read_marks;
use crate::union::lookup::realdir::{DirFds, LayerIndex, RealDir};
use crate::union::nodes::deferred_free::DeferredFrees;
use crate::union::nodes::generation::Generations;
use crate::union::nodes::node::DirPart;
use crate::union::nodes::notify::AttributeCache;
use crate::union::nodes::pins::Pins;
use crate::union::nodes::region::{Regions, check_xino};
use crate::union::nodes::table::Table;
use crate::union::nodes::verified::Stale;
use crate::union::options::{FsOptions, Lazy, RedirectDir, Xino};
use crate::union::stack::access::{LayerAt, LayerObject};
use crate::union::stack::directory::Layer;
use crate::union::stack::layer::{Lower, Stack, UpperLayer};
use crate::union::view::owners::Owners;
use crate::union::{Caller, Counters, LAYER_WAY_OUT, Limits, OpenLayer, Union};

impl Union {
    /// Makes the merged view of a stack, with the usual options.
    ///
    /// # Errors
    /// Those of reading the roots of the layers and the hardlink index.
    pub fn new(stack: Stack, limits: Limits) -> Result<Union> {
        Union::with_options(stack, limits, &FsOptions::default())
    }

    /// Returns the merged view of a stack.
    ///
    /// # Errors
    /// Those of [`Union::new`], and options that these layers can't be served with.
    pub fn with_options(stack: Stack, limits: Limits, options: &FsOptions) -> Result<Union> {
        Union::after(None, stack, limits, options)
    }

    /// Returns the merged view of a stack, which is to take over from another. `before`: the regions of that one.
    ///
    /// # Errors
    /// Those of [`Union::with_options`].
    pub(in crate::union) fn after(
        before: Option<&Regions>,
        stack: Stack,
        limits: Limits,
        options: &FsOptions,
    ) -> Result<Union> {
        let (data_only, frozen) = (stack.data_only, stack.frozen);
        let belief = stack.belief.with_permissions(options.xattr_permissions);
        let (layers, upper_layer) = open_layers(stack.upper, stack.lowers, belief)?;
        let regions = Arc::new(Regions::of_layers(&layers, before)?);
        let upper = match upper_layer {
            Some(layer) => {
                Some(Upper::new(layer, regions.clone(), regions.sources(&layers)?, options.quota)?)
            }
            None => None,
        };
        let hardlinks = Hardlinks::of(upper.as_ref())?;
        let (dir, real) = merged_root(&layers[..layers.len() - data_only], upper.is_some())?;
        let fds = DirFds::telling(limits.dir_fds, Generations::new(lasting_handles(&layers)?));
        read_root_marks(&layers, &fds, belief, upper.is_some().then_some(&dir))?;
        let owners = owners(options, belief, &layers, &fds, upper.as_ref())?;
        if options.xino == Xino::On {
            check_xino(&layers)?;
        }
        let block_wise = copies_blocks(options, upper.as_ref());
        let table = Table::new(options.ino32);
        let root = table.insert_root(dir, regions.identity(real.region(), true, real.id.0, real.id.1));
        let own =
            Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Ok(Union {
            layers,
            data_only,
            frozen,
            fds,
            pins: Pins::new(limits.pinned_fds, upper.as_ref().and_then(|upper| upper.quota().cloned())),
            table,
            root,
            files: Files::new(limits.data_fds),
            deferred: DeferredFrees::default(),
            regions,
            renames: Mutex::new(()),
            hardlinks,
            copying: DashMap::new(),
            running_copies: Default::default(),
            metacopies: DashMap::new(),
            halves: Halves::default(),
            waiting: Waiting::new(block_wise && options.lazy == Lazy::On),
            index_cache: IndexCache::new(limits.index_bytes),
            attribute_cache: AttributeCache::default(),
            veils: stack.veils,
            // ACLs are made of real permission bits.
            no_acl: options.no_acl || owners.override_real(),
            owners,
            no_atime: options.no_atime,
            belief,
            redirects: redirects_made(options.redirect_dir, upper.as_ref()),
            metacopy: options.metacopy,
            block_wise,
            verity: options.verity,
            left_out: LeftOut::default(),
            static_nlink: options.static_nlink,
            watched: options.check_lowers.then(DashMap::new),
            stale: Stale::default(),
            told_dirs: ToldDirs::default(),
            held_times: Arc::default(),
            own,
            counters: Counters::default(),
            events: Arc::default(),
            upper,
        })
    }
}

/// Opens the layers, the upper first if there is one.
fn open_layers(
    upper: Option<UpperLayer>,
    lowers: Vec<Lower>,
    belief: Belief,
) -> Result<(Vec<OpenLayer>, Option<UpperLayer>)> {
    let mut layers = Vec::new();
    let upper = match upper {
        Some(layer) => {
            let root = rustix::io::fcntl_dupfd_cloexec(&layer.layer.root, 3)?;
            let (path, place) = (layer.layer.path.clone(), layer.layer.place.clone());
            let opened = Lower::Directory(Layer { path, place, root, ..layer.layer });
            layers.push(open_layer(opened, 0, belief)?);
            Some(layer)
        }
        None => None,
    };
    for lower in lowers {
        let index = layers.len() as LayerIndex;
        layers.push(open_layer(lower, index, belief)?);
    }
    Ok((layers, upper))
}

/// Reads the marks on the layers' roots. `merged`: the root of the merged tree, where there is an upper.
fn read_root_marks(
    layers: &[OpenLayer],
    fds: &DirFds,
    belief: Belief,
    merged: Option<&DirPart>,
) -> Result<()> {
    for layer in layers {
        let marks = read_marks(fds.get(&layer.root)?.at(), belief)
            .map_err(|e| FsError::from(e).of(layer, LAYER_WAY_OUT))?;
        layer.root.xattr_whiteouts.store(marks.xattr_whiteouts, Ordering::Relaxed);
        layer.root.impure.store(marks.impure, Ordering::Relaxed);
        if let Some(merged) = merged.filter(|_| layer.root.layer == 0) {
            merged.impure.store(marks.impure, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Tells whose the objects of the layers are shown to be.
fn owners(
    options: &FsOptions,
    belief: Belief,
    layers: &[OpenLayer],
    fds: &DirFds,
    upper: Option<&Upper>,
) -> Result<Owners> {
    let roots = layers.iter().map(|layer| fds.get(&layer.root)).collect::<Result<Vec<_>>>()?;
    let at_roots: Vec<LayerAt<'_>> = roots.iter().map(LayerObject::at).collect();
    let own_root =
        |upper: &Upper| Ok::<_, FsError>(upper.own(fds.host(&layers[0].root)?, layers[0].root.clone()));
    let upper_root = upper.map(own_root).transpose()?;
    Owners::new(options, belief, &at_roots, upper_root.as_ref().map(|root| root.itself()))
}

/// Tells whether large files are copied up block by block.
fn copies_blocks(options: &FsOptions, upper: Option<&Upper>) -> bool {
    if options.lazy == Lazy::Off {
        return false;
    }
    // Tests of a unit kill the process, and not the machine.
    let ordered = |upper: &Upper| cfg!(test) || filesystem::orders_data(upper.root());
    let can = upper.is_some_and(ordered);
    if !can {
        log::warn!(
            "option lazy: files are copied up whole, as the upper's filesystem is neither ext4 with data=ordered nor XFS, or has DAX"
        );
    }
    can
}

/// Tells what is done about redirects, as far as the upper can keep them.
fn redirects_made(asked: RedirectDir, upper: Option<&Upper>) -> RedirectDir {
    match asked {
        // There is nowhere to keep one.
        RedirectDir::On if upper.is_some_and(|upper| !upper.caps().xattr) => RedirectDir::Follow,
        asked => asked,
    }
}

/// Returns the devices of the layers whose file handles mean the same as long as the inode lives.
fn lasting_handles(layers: &[OpenLayer]) -> Result<Vec<u64>> {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    let fds = DirFds::new(0);
    let mut lasting = Vec::new();
    for layer in layers.iter().filter(|layer| layer.root.tree().is_none()) {
        let kind = rustix::fs::fstatfs(fds.host(&layer.root)?.as_fd())?.f_type;
        #[allow(clippy::unnecessary_cast)] // the type differs by architecture
        if kind as u64 & 0xffff_ffff != FUSE_SUPER_MAGIC && !lasting.contains(&layer.root.id.0) {
            lasting.push(layer.root.id.0);
        }
    }
    Ok(lasting)
}

fn open_layer(lower: Lower, index: LayerIndex, belief: Belief) -> Result<OpenLayer> {
    let path = lower.path().to_owned();
    let place = match lower.directory() {
        Some(layer) => layer.place.clone(),
        None => lower.path().as_os_str().as_bytes().to_vec(),
    };
    let (root, _) = RealDir::of_lower(index, lower, belief)
        .map_err(|e| e.of(format_args!("layer {}", path.display()), LAYER_WAY_OUT))?;
    Ok(OpenLayer { path, place, root })
}

/// Returns the root of the merged tree, and which inode gives it its identity. As in the kernel, the roots of all
/// layers are merged whatever marks they carry: an opaque root would make the layers below it pointless.
fn merged_root(layers: &[OpenLayer], has_upper: bool) -> Result<(DirPart, Arc<RealDir>)> {
    let roots = || layers.iter().map(|l| l.root.clone());
    let upper = if has_upper { roots().next() } else { None };
    let lowers: Vec<_> = roots().skip(usize::from(has_upper)).collect();
    let real =
        lowers.first().or(upper.as_ref()).cloned().ok_or(FsError::Invalid("a stack without layers"))?;
    Ok((DirPart::new(upper, lowers), real))
}
