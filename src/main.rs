//! temp
use std::sync::Arc;
use unionmount::union::{
    Limits, Union,
    layer::{Stack, StackOptions},
};
fn main() {
    env_logger::init();
    let a: Vec<String> = std::env::args().collect();
    let o = StackOptions {
        lowers: a[1].split(':').map(Into::into).collect(),
        upper: (!a[2].is_empty()).then(|| a[2].clone().into()),
        work: (!a[3].is_empty()).then(|| a[3].clone().into()),
        ..Default::default()
    };
    let stack = Stack::open(&o).expect("stack");
    rustix::process::umask(rustix::fs::Mode::empty());
    let u = Arc::new(Union::new(stack, false, Limits::default()).expect("union"));
    let fs = unionmount::fuse::UnionFs::new(u, Default::default());
    let mut c = fuser::Config::default();
    c.mount_options = vec![
        fuser::MountOption::DefaultPermissions,
        fuser::MountOption::Dev,
        fuser::MountOption::Suid,
        fuser::MountOption::FSName("unionmount".into()),
    ];
    c.acl = fuser::SessionACL::All;
    c.n_threads = Some(4);
    c.clone_fd = true;
    let r = fs.requests();
    fuser::mount(fs, &a[4], &c).expect("mount");
    eprintln!("{r}");
}
