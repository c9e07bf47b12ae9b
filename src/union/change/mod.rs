//! Changes: the upper, which alone can be written, and what is done in it.
//!
//! | module | what it knows |
//! |---|---|
//! | [`new`], [`upper`], [`staged`], `whiteouts`, `stepwise` | the only part that can write: where objects are made, what becomes of names, with which steps where one isn't possible |
//! | `counted` | the calls that make the upper larger or smaller, counted where there is a quota |
//! | `lend` | rights that the daemon lends to itself |
//! | `indexed` | the upper's part in the hardlink indexes |
//! | [`copy_up`], [`part`], `carry` | prepare, fill, publish; how much is needed; which attributes come along |
//! | [`sealing`] | what an upper leaves below is copied into it |
//! | [`create`], [`modify`], [`rename`] | create; link, remove; rename |
//! | `names`, `made_entry`, `redirect`, `removed_entry` | what the upper has under a name; what goes again unless all is well; where the lowers have what was renamed; what loses a name |
//! | `judged` | is what a removal or a rename finds what the kernel judged? |
//! | `failpoint` | where tests stop an operation |

pub(in crate::union) mod carry;
pub mod copy_up;
pub(in crate::union) mod counted;
pub mod create;
pub(in crate::union) mod failpoint;
pub(in crate::union) mod indexed;
pub(in crate::union) mod judged;
pub(in crate::union) mod lend;
pub(in crate::union) mod made_entry;
pub mod modify;
pub(in crate::union) mod names;
pub mod new;
pub mod part;
pub(in crate::union) mod redirect;
pub(in crate::union) mod removed_entry;
pub mod rename;
pub mod sealing;
pub mod staged;
pub(in crate::union) mod stepwise;
pub mod upper;
pub(in crate::union) mod whiteouts;
