//! Why options are refused.

use std::ffi::OsString;

use crate::union::stack::layer::StackError;

/// Why an option string was refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// The value does not fit the option.
    #[error("option {name}: bad value {value:?}; {expected}")]
    BadValue {
        /// The option's name.
        name: &'static str,
        /// Its value.
        value: OsString,
        /// What may be given.
        expected: &'static str,
    },
    /// It needs a value.
    #[error("option {0} needs a value, as in {0}=…")]
    NoValue(&'static str),
    /// The option is known, and cannot be served.
    #[error("option {name}: {why}")]
    Refused {
        /// The option's name.
        name: &'static str,
        /// The cause and the way out.
        why: &'static str,
    },
    /// The branches of another union.
    #[error("option {name}: write -o {ours}")]
    Branches {
        /// The option's name.
        name: String,
        /// The same in our words.
        ours: String,
    },
    /// The list of lower layers is malformed.
    #[error("{0}")]
    Lowers(#[from] StackError),
}
