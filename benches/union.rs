//! The parts of the union that have a hot loop, without FUSE: `cargo bench --bench union`.

#![allow(clippy::unwrap_used)] // a bench that can't be run ends the program

use std::fs;
use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

use unionmount::sys::object::At;
use unionmount::union::lookup::index::LowerIndex;
use unionmount::union::lookup::realdir::RealDir;
use unionmount::union::stack::layer::{Stack, StackOptions};
use unionmount::union::view::attr::SetAttr;
use unionmount::union::view::readdir::Looked;
use unionmount::union::{Limits, Union};

const LAYERS: usize = 4;
const FILES: usize = 1000;

/// A union of [`LAYERS`] lowers that share a directory `d` of [`FILES`] files, and an upper.
fn union(scratch: &Path, size: usize) -> Union {
    let lowers: Vec<_> = (0..LAYERS).map(|layer| scratch.join(format!("lower{layer}"))).collect();
    for lower in &lowers {
        fs::create_dir_all(lower.join("d")).unwrap();
    }
    for file in 0..FILES {
        fs::write(lowers[file % LAYERS].join(format!("d/file-{file}")), "content").unwrap();
    }
    fs::write(lowers[0].join("large"), vec![7; size]).unwrap();
    fs::create_dir_all(scratch.join("upper")).unwrap();
    open(scratch)
}

fn open(scratch: &Path) -> Union {
    let lowers = (0..LAYERS).map(|layer| scratch.join(format!("lower{layer}")).into()).collect();
    let options = StackOptions {
        lowers,
        upper: Some(scratch.join("upper")),
        volatile: true,
        ..StackOptions::default()
    };
    Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap()
}

fn lookups(criterion: &mut Criterion) {
    let scratch = TempDir::new().unwrap();
    let union = union(scratch.path(), 0);
    let (dir, _) = union.lookup(union.root(), b"d").unwrap().unwrap();
    let mut group = criterion.benchmark_group("lookup");
    group.bench_function("found in one of 4 layers", |b| {
        b.iter(|| {
            let (node, _) = union.lookup(&dir, b"file-501").unwrap().unwrap();
            let ino = node.ino;
            drop(node);
            union.forget(ino, 1);
        });
    });
    group.bench_function("missing, by the index", |b| {
        b.iter(|| assert!(union.lookup(black_box(&dir), b"missing").unwrap().is_none()));
    });
    group.finish();
}

fn indexes(criterion: &mut Criterion) {
    let scratch = TempDir::new().unwrap();
    drop(union(scratch.path(), 0));
    let open =
        |layer: usize| OwnedFd::from(fs::File::open(scratch.path().join(format!("lower{layer}/d"))).unwrap());
    let dirs: Vec<_> = (0..LAYERS)
        .map(|layer| {
            let stat = At::Fd(open(layer).as_fd()).stat().unwrap();
            RealDir::root(
                layer as u16,
                open(layer),
                &stat,
                unionmount::union::lookup::belief::Belief::of_process(),
            )
        })
        .collect();
    let build = || {
        let mut budget = usize::MAX;
        let open = |dir: &Arc<RealDir>| Ok(open(usize::from(dir.layer)).into());
        LowerIndex::build(&dirs, &mut budget, open, |_, _, _| true).unwrap().unwrap()
    };
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("build from 4 layers", |b| b.iter(&build));
    group.finish();
    let index = build();
    let mut group = criterion.benchmark_group("index");
    group.bench_function("hit", |b| b.iter(|| index.get(black_box(b"file-777")).is_some()));
    group.bench_function("miss", |b| b.iter(|| index.get(black_box(b"missing")).is_none()));
    group.finish();
}

fn listings(criterion: &mut Criterion) {
    let scratch = TempDir::new().unwrap();
    let union = union(scratch.path(), 0);
    for file in 0..FILES {
        fs::write(scratch.path().join(format!("upper/file-{file}")), "").unwrap();
    }
    let (dir, _) = union.lookup(union.root(), b"d").unwrap().unwrap();
    let mut group = criterion.benchmark_group("listing");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("names", |b| {
        b.iter(|| {
            union
                .readdir(&dir, 2, |entry| {
                    black_box(entry);
                    true
                })
                .unwrap();
        });
    });
    group.bench_function("with attributes", |b| {
        b.iter(|| {
            let mut seen = Vec::with_capacity(FILES);
            union
                .readdirplus(&dir, 2, |entry| {
                    if let Looked::Found { node, .. } = &entry.what {
                        seen.push(node.ino);
                    }
                    true
                })
                .unwrap();
            seen.into_iter().for_each(|ino| union.forget(ino, 1));
        });
    });
    group.finish();
}

fn copy_ups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy-up");
    group.sample_size(20);
    for size in [4 << 10, 4 << 20] {
        let scratch = TempDir::new().unwrap();
        drop(union(scratch.path(), size));
        group.throughput(Throughput::Bytes(size as u64));
        let fresh = || {
            fs::remove_dir_all(scratch.path().join("upper")).unwrap();
            fs::create_dir(scratch.path().join("upper")).unwrap();
            fs::remove_dir_all(scratch.path().join(".upper.work")).unwrap_or_default();
            let union = open(scratch.path());
            let (node, _) = union.lookup(union.root(), b"large").unwrap().unwrap();
            (union, node)
        };
        group.bench_function(format!("{} KiB", size >> 10), |b| {
            b.iter_batched(
                fresh,
                |(union, node)| {
                    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                    union.setattr(&node, change, false).unwrap();
                    (union, node)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, indexes, listings, copy_ups);
criterion_main!(benches);
