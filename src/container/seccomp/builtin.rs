//! The profile for machines without one.
//!
//! A list of our own, by what calls are for (syscalls(2)): what programs need is allowed, what changes the machine needs the
//! capability that the kernel asks for as well, so that a kernel's mistake there is out of reach; what is neither gets
//! ENOSYS, as of a kernel that doesn't know it, for which C libraries have another way. Calls of other machines than this
//! one are skipped by the runtime.

use oci_spec::runtime::{
    Capability, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::{ArchMap, Condition, Profile, Rule};
use oci_spec::runtime::Arch;

/// Files, their names and attributes.
const FILES: &str = "_llseek access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
    fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
    ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 lgetxattr link \
    linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at \
    newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink \
    readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat \
    stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range \
    arm_fadvise64_64 syncfs tee truncate truncate64 ugetrlimit umask unlink unlinkat utime utimensat utimensat_time64 \
    utimes vmsplice write writev cachestat mseal";

/// Waiting for descriptors, events, asynchronous work.
const WAITING: &str = "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy \
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit fanotify_mark poll ppoll ppoll_time64 pselect6 pselect6_time64 select \
    signalfd signalfd4 timerfd timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
    pipe pipe2";

/// Processes, threads, their identities and limits. clone is looked at by its flags.
const PROCESSES: &str = "arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid \
    getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self membarrier pidfd_open pidfd_send_signal prctl prlimit64 \
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
    set_robust_list set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit setsid setuid setuid32 sigaction sigaltstack signal sigpending sigprocmask sigreturn sigsuspend \
    tgkill tkill vfork wait4 waitid waitpid cacheflush breakpoint modify_ldt riscv_flush_icache riscv_hwprobe \
    map_shadow_stack rt_sigqueueinfo ptrace process_vm_readv process_vm_writev pidfd_getfd process_mrelease";

/// Memory.
const MEMORY: &str = "brk madvise memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap msync munlock \
    munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages";

/// Messages, semaphores, shared memory.
const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";

/// Sockets. The making of one is looked at by its family.
const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

/// Time, and what the system tells of itself.
const TELLING: &str = "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep oldolduname olduname pause sysinfo time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times uname";

/// What changes the machine, or leads out of a container: by the capability that the kernel wants for it. Without it, EPERM.
const BY_CAPABILITY: [(Capability, &str); 11] = [
    (
        Capability::SysAdmin,
        "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns swapoff swapon syslog \
         umount umount2 unshare listmount statmount",
    ),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysBoot, "kexec_file_load kexec_load reboot"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
];

/// What no container gets, whatever its capabilities: keys and their rings are not divided by namespaces, io_uring passes
/// by this very filter, the rest is of no use any more.
const NEVER: &str = "add_key keyctl request_key io_uring_enter io_uring_register io_uring_setup userfaultfd uselib \
    ustat sysfs nfsservctl query_module create_module get_kernel_syms _sysctl vm86 vm86old";

/// CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS: a namespace of its own shows a process more of the kernel.
const NEW_NAMESPACES: u64 =
    0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x0002_0000;

/// The family of sockets by which guests talk to what runs them, which no network namespace divides.
const AF_VSOCK: u64 = 40;

/// The execution domains that change nothing of weight: Linux's own, 32 bits on uname(2), both without randomness taken
/// away; and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn rule(names: &str, action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> Rule {
    let mut calls = LinuxSyscall::default();
    calls.set_names(names.split_whitespace().map(str::to_owned).collect());
    calls.set_action(action);
    calls.set_args(Some(args).filter(|args| !args.is_empty()));
    if action == LinuxSeccompAction::ScmpActErrno {
        calls.set_errno_ret(Some(EPERM));
    }
    Rule { calls, includes: Condition::default(), excludes: Condition::default() }
}

fn argument(index: usize, value: u64, two: Option<u64>, op: LinuxSeccompOperator) -> Vec<LinuxSeccompArg> {
    let mut built = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    if let Some(two) = two {
        built = built.value_two(two);
    }
    built.build().into_iter().collect()
}

/// Returns the profile.
pub(super) fn profile() -> Profile {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    let mut rules: Vec<Rule> = [FILES, WAITING, PROCESSES, MEMORY, IPC, SOCKETS, TELLING]
        .into_iter()
        .map(|names| rule(names, Allow, Vec::new()))
        .collect();
    for (capability, names) in BY_CAPABILITY {
        let (mut with, mut without) = (rule(names, Allow, Vec::new()), Vec::new());
        with.includes.caps.push(capability);
        // clone3 hides its flags from filters: it is "not there", and C libraries use clone.
        let names = names.split_whitespace().filter(|name| *name != "clone3").collect::<Vec<_>>().join(" ");
        without.push(rule(&names, Errno, Vec::new()));
        for mut rule in without {
            rule.excludes.caps.push(capability);
            rules.push(rule);
        }
        rules.push(with);
    }
    rules.push(rule(NEVER, Errno, Vec::new()));
    // The flags are clone's first argument, but for s390, where they are the second.
    let flags = usize::from(cfg!(target_arch = "s390x"));
    let plain = argument(flags, NEW_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq);
    let (mut clone, mut any) = (rule("clone", Allow, plain), rule("clone", Allow, Vec::new()));
    clone.excludes.caps.push(Capability::SysAdmin);
    any.includes.caps.push(Capability::SysAdmin);
    rules.extend([clone, any]);
    rules.push(rule("socket", Allow, argument(0, AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)));
    for domain in PERSONALITIES {
        rules.push(rule("personality", Allow, argument(0, domain, None, LinuxSeccompOperator::ScmpCmpEq)));
    }
    let also = |architecture, sub: &[Arch]| ArchMap { architecture, sub_architectures: sub.to_vec() };
    Profile {
        default_action: Errno,
        default_errno_ret: Some(ENOSYS),
        architectures: Vec::new(),
        arch_map: vec![
            also(Arch::ScmpArchX86_64, &[Arch::ScmpArchX86, Arch::ScmpArchX32]),
            also(Arch::ScmpArchAarch64, &[Arch::ScmpArchArm]),
            also(Arch::ScmpArchS390x, &[Arch::ScmpArchS390]),
            also(Arch::ScmpArchArm, &[]),
            also(Arch::ScmpArchX86, &[]),
            also(Arch::ScmpArchRiscv64, &[]),
            also(Arch::ScmpArchPpc64le, &[]),
        ],
        syscalls: rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_call_is_allowed_and_refused_at_once() {
        let profile = profile();
        let names = |action: LinuxSeccompAction| -> HashSet<String> {
            let rules = profile
                .syscalls
                .iter()
                .filter(|rule| rule.calls.action() == action && rule.includes.caps.is_empty());
            rules.flat_map(|rule| rule.calls.names().clone()).collect()
        };
        let allowed = names(LinuxSeccompAction::ScmpActAllow);
        let refused = names(LinuxSeccompAction::ScmpActErrno);
        assert_eq!(allowed.intersection(&refused).collect::<Vec<_>>(), Vec::<&String>::new());
        for name in [
            "mount",
            "bpf",
            "keyctl",
            "unshare",
            "setns",
            "open_by_handle_at",
            "init_module",
            "io_uring_setup",
        ] {
            assert!(refused.contains(name), "{name}");
        }
        assert!(!allowed.contains("clone3") && !refused.contains("clone3"));
        for name in ["read", "openat", "execve", "statx", "futex", "clone", "socket", "rseq"] {
            assert!(allowed.contains(name), "{name}");
        }
    }
}
