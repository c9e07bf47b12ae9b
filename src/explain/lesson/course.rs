//! What a lesson consists of: steps with commands, and what these do to the layers.

/// A lesson, as it is written down.
#[derive(Debug)]
pub struct Course {
    /// What it is called on the command line and in the texts: `lesson.NAME.STEP.title`.
    pub name: &'static str,
    /// Its steps in order.
    pub(super) steps: &'static [Step],
    /// What is run unseen before the first step, in the shell.
    pub(super) prepare: &'static str,
}

impl Course {
    /// Returns how many steps it has.
    #[allow(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.steps.len()
    }
}

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    /// What it is called in the texts.
    pub name: &'static str,
    /// What is run. `UNMOUNT` stands for `umount` or, for an ordinary user, `fusermount3 -u`.
    pub commands: &'static [Shown],
    /// Which of the choices is right, from 1; 0: the learner thinks for himself.
    pub right: usize,
    /// The upper whose changes are told after the commands, if any are.
    pub upper: Option<&'static str>,
    /// What must be in that upper then.
    pub effects: &'static [Effect],
    /// What the commands must have printed, that the text is true.
    pub says: &'static [&'static str],
}

impl Step {
    /// Where a step has nothing to tell.
    pub(super) const NONE: Step =
        Step { name: "", commands: &[], right: 0, upper: None, effects: &[], says: &[] };
}

/// A command that is shown.
#[derive(Debug)]
pub(super) enum Shown {
    /// It is run, and fails the lesson if it fails.
    Run(&'static str),
    /// It is run by root; for an ordinary user it is only shown.
    AsRoot(&'static str),
}

/// What is found in an upper: a path in it, and the lower that has the path too.
#[derive(Debug)]
pub(super) enum Effect {
    CopyUp(&'static str, &'static str),
    Whiteout(&'static str, &'static str),
    Opaque(&'static str),
    New(&'static str),
    /// A directory that goes on under another name in the layers below.
    Redirect(&'static str),
}

impl Effect {
    /// Returns the path in the upper.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Effect::CopyUp(path, _)
            | Effect::Whiteout(path, _)
            | Effect::Opaque(path)
            | Effect::New(path)
            | Effect::Redirect(path) => path,
        }
    }
}
