//! The verbs, and Docker's nouns, below which the same verbs stand once more.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::inspect::Kind;
use super::{
    Failure, apply, attach, commit, completions, container_prune, cp, create, demo, df, diff, discard, exec,
    explain, export, help, history, image_diff, image_tree, images, import, inspect, layers, load, login,
    man, prune, ps, pull, push, rename, rm, rmi, run, save, seal, snapshot, snapshotter, squash, status, tag,
    tags, trace, trial, umount, unpack, upgrade, verify, version,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Try(trial::Try),
    Explain(explain::Explain),
    Status(status::Status),
    Trace(trace::Trace),
    Layers(layers::Layers),
    Demo(demo::Demo),
    Load(load::Load),
    Save(save::Save),
    Import(import::Import),
    Images(images::Images),
    Inspect(inspect::Inspect),
    History(history::History),
    Pull(pull::Pull),
    Push(push::Push),
    Login(login::Login),
    Logout(login::Logout),
    Tags(tags::Tags),
    Tag(tag::Tag),
    Rmi(rmi::Rmi),
    Unpack(unpack::Unpack),
    Prune(prune::Prune),
    Verify(verify::Verify),
    Create(create::Create),
    Run(run::Run),
    Exec(exec::Exec),
    Ps(ps::Ps),
    Cp(cp::Cp),
    Diff(diff::Diff),
    Apply(apply::Apply),
    Discard(discard::Discard),
    Seal(seal::Seal),
    Snapshot(snapshot::Snapshot),
    Snapshots(snapshot::Snapshots),
    Rollback(snapshot::Rollback),
    Squash(squash::Squash),
    Branch(snapshot::Branch),
    Commit(commit::Commit),
    Export(export::Export),
    Rename(rename::Rename),
    Rm(rm::Rm),
    #[command(name = "mount")]
    Attach(attach::Attach),
    #[command(visible_alias = "unmount")]
    Umount(umount::Umount),
    Upgrade(upgrade::Upgrade),
    Image(ImageNoun),
    Container(ContainerNoun),
    System(SystemNoun),
    Help(help::Help),
    Version(version::Version),
    Man(man::Man),
    Completions(completions::Completions),
    Snapshotter(snapshotter::Snapshotter),
}

impl Verb {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Verb::Try(verb) => verb.run(),
            Verb::Explain(verb) => verb.run(),
            Verb::Status(verb) => verb.run(),
            Verb::Trace(verb) => verb.run(),
            Verb::Layers(verb) => verb.run(),
            Verb::Demo(verb) => verb.run(),
            Verb::Load(verb) => verb.run(),
            Verb::Save(verb) => verb.run(),
            Verb::Import(verb) => verb.run(),
            Verb::Images(verb) => verb.run(),
            Verb::Inspect(verb) => verb.run(),
            Verb::History(verb) => verb.run(),
            Verb::Pull(verb) => verb.run(),
            Verb::Push(verb) => verb.run(),
            Verb::Login(verb) => verb.run(),
            Verb::Logout(verb) => verb.run(),
            Verb::Tags(verb) => verb.run(),
            Verb::Tag(verb) => verb.run(),
            Verb::Rmi(verb) => verb.run(),
            Verb::Unpack(verb) => verb.run(),
            Verb::Prune(verb) => verb.run(),
            Verb::Verify(verb) => verb.run(),
            Verb::Create(verb) => verb.run(),
            Verb::Run(verb) => verb.run(),
            Verb::Exec(verb) => verb.run(),
            Verb::Ps(verb) => verb.run(),
            Verb::Cp(verb) => verb.run(),
            Verb::Diff(verb) => verb.run(),
            Verb::Apply(verb) => verb.run(),
            Verb::Discard(verb) => verb.run(),
            Verb::Seal(verb) => verb.run(),
            Verb::Snapshot(verb) => verb.run(),
            Verb::Snapshots(verb) => verb.run(),
            Verb::Rollback(verb) => verb.run(),
            Verb::Squash(verb) => verb.run(),
            Verb::Branch(verb) => verb.run(),
            Verb::Commit(verb) => verb.run(),
            Verb::Export(verb) => verb.run(),
            Verb::Rename(verb) => verb.run(),
            Verb::Rm(verb) => verb.run(),
            Verb::Attach(verb) => verb.run(),
            Verb::Umount(verb) => verb.run(),
            Verb::Upgrade(verb) => verb.run(),
            Verb::Image(noun) => noun.verb.run(),
            Verb::Container(noun) => noun.verb.run(),
            Verb::System(noun) => noun.verb.run(),
            Verb::Help(verb) => verb.run(),
            Verb::Version(verb) => verb.run(),
            Verb::Man(verb) => verb.run(),
            Verb::Completions(verb) => verb.run(),
            Verb::Snapshotter(verb) => verb.run(),
        }
    }
}

/// The verbs about images once more, in Docker's words: image ls, image rm …; and image tree, image diff
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, subcommand_value_name = "VERB")]
pub(super) struct ImageNoun {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    #[command(alias = "list")]
    Ls(images::Images),
    Inspect(inspect::Inspect),
    History(history::History),
    Tree(image_tree::ImageTree),
    Diff(image_diff::ImageDiff),
    #[command(alias = "remove")]
    Rm(rmi::Rmi),
    Prune(prune::Prune),
    Pull(pull::Pull),
    Push(push::Push),
    Tag(tag::Tag),
    Save(save::Save),
    Load(load::Load),
    Import(import::Import),
}

impl ImageVerb {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            ImageVerb::Ls(verb) => verb.run(),
            ImageVerb::Inspect(verb) => verb.only(Kind::Image).run(),
            ImageVerb::History(verb) => verb.run(),
            ImageVerb::Tree(verb) => verb.run(),
            ImageVerb::Diff(verb) => verb.run(),
            ImageVerb::Rm(verb) => verb.run(),
            ImageVerb::Prune(verb) => verb.run(),
            ImageVerb::Pull(verb) => verb.run(),
            ImageVerb::Push(verb) => verb.run(),
            ImageVerb::Tag(verb) => verb.run(),
            ImageVerb::Save(verb) => verb.run(),
            ImageVerb::Load(verb) => verb.run(),
            ImageVerb::Import(verb) => verb.run(),
        }
    }
}

/// The verbs about containers once more, in Docker's words: container ls, container rm …
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, subcommand_value_name = "VERB")]
pub(super) struct ContainerNoun {
    #[command(subcommand)]
    verb: ContainerVerb,
}

#[derive(Debug, Subcommand)]
enum ContainerVerb {
    #[command(aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Create(create::Create),
    Run(run::Run),
    Exec(exec::Exec),
    Cp(cp::Cp),
    Commit(commit::Commit),
    Export(export::Export),
    Rename(rename::Rename),
    Diff(diff::Diff),
    Inspect(inspect::Inspect),
    #[command(alias = "remove")]
    Rm(rm::Rm),
    Prune(container_prune::ContainerPrune),
    #[command(name = "mount")]
    Attach(attach::Attach),
    #[command(alias = "unmount")]
    Umount(umount::Umount),
}

impl ContainerVerb {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            ContainerVerb::Ls(verb) => verb.run(),
            ContainerVerb::Create(verb) => verb.run(),
            ContainerVerb::Run(verb) => verb.run(),
            ContainerVerb::Exec(verb) => verb.run(),
            ContainerVerb::Cp(verb) => verb.run(),
            ContainerVerb::Commit(verb) => verb.run(),
            ContainerVerb::Export(verb) => verb.run(),
            ContainerVerb::Rename(verb) => verb.run(),
            ContainerVerb::Diff(verb) => verb.run(),
            ContainerVerb::Inspect(verb) => verb.only(Kind::Container).run(),
            ContainerVerb::Rm(verb) => verb.run(),
            ContainerVerb::Prune(verb) => verb.run(),
            ContainerVerb::Attach(verb) => verb.run(),
            ContainerVerb::Umount(verb) => verb.run(),
        }
    }
}

/// What the store takes on the disk, in Docker's words: system df
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, subcommand_value_name = "VERB")]
pub(super) struct SystemNoun {
    #[command(subcommand)]
    verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
enum SystemVerb {
    Df(df::Df),
    Prune(prune::Prune),
}

impl SystemVerb {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            SystemVerb::Df(verb) => verb.run(),
            SystemVerb::Prune(verb) => verb.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::help::GROUPS;

    #[test]
    fn every_verb_stands_in_one_group() {
        let program = super::super::command();
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let mut verbs: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
        listed.sort_unstable();
        verbs.sort_unstable();
        assert_eq!(listed, verbs);
    }
}
