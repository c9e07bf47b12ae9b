//! The command line: clap definitions and one small file a verb.
