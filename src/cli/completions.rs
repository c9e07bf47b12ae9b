//! `unionmount completions SHELL`: what makes the shell complete this program's arguments.
//!
//! The shells' scripts know nothing of the arguments: they hand over the words, and this program answers with what may
//! stand there, from the definitions of the command line, the store and the mounts ([`candidates`]).

use std::ffi::OsString;
use std::process::ExitCode;

use clap_complete::Shell;
use clap_complete::engine::{CompletionCandidate, complete};

use super::page::Page;
use super::{Failure, candidates};

/// Print shell completions, to be sourced or put where the shell looks for them
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,

    /// Answer a shell: the number of the word that is completed
    #[arg(long, hide = true, value_name = "NUMBER", requires = "words")]
    at: Option<usize>,

    /// The words that were typed
    #[arg(hide = true, last = true)]
    words: Vec<OsString>,
}

const BASH: &str = r#"_unionmount() {
    # Words as they were typed: bash parts them at colons and equals signs as well.
    local rest=${COMP_LINE:0:COMP_POINT} words=() word i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=("")
        fi
        [[ $rest == "$word"* ]] || word=$rest
        rest=${rest#"$word"}
        words[${#words[@]}-1]+=${word//\\/}
    done
    local current=${words[${#words[@]}-1]} line value
    # What bash has before the word that it will replace.
    local before=${current%"${current##*[:=]}"}
    COMPREPLY=()
    while IFS= read -r line; do
        value=${line%%$'\t'*}
        value=${value#"$before"}
        [[ $value == *[=/:,] ]] && compopt -o nospace
        COMPREPLY+=("$(printf %q "$value")")
    done < <("${COMP_WORDS[0]/#\~/$HOME}" completions bash --at $((${#words[@]} - 1)) -- "${words[@]}" 2>/dev/null)
}
complete -o nosort -F _unionmount unionmount
"#;

const ZSH: &str = r#"#compdef unionmount
_unionmount() {
    local -a open open_shown closed closed_shown
    local line value help
    for line in "${(@f)$("${(Q)words[1]/#\~/$HOME}" completions zsh --at $((CURRENT - 1)) -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        value=${line%%$'\t'*}
        help=${line#*$'\t'}
        [[ $help == $line || -z $help ]] && help=$value || help="$value  -- $help"
        if [[ $value == *[=/:,] ]]; then
            open+=("$value") open_shown+=("$help")
        else
            closed+=("$value") closed_shown+=("$help")
        fi
    done
    (( $#closed )) && compadd -l -V closed -d closed_shown -a closed
    (( $#open )) && compadd -l -V open -S '' -d open_shown -a open
    (( $#closed + $#open ))
}
if [[ $funcstack[1] == _unionmount ]]; then
    _unionmount "$@"
else
    compdef _unionmount unionmount
fi
"#;

const FISH: &str = r#"function __unionmount_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    $program completions fish --at (count $words) -- $words (commandline --current-token --cut-at-cursor) 2>/dev/null
end
complete --command unionmount --no-files --keep-order --arguments '(__unionmount_complete)'
"#;

impl Completions {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if let Some(at) = self.at {
            return answer(self.words, at);
        }
        let script = match self.shell {
            Shell::Bash => BASH.as_bytes().to_vec(),
            Shell::Zsh => ZSH.as_bytes().to_vec(),
            Shell::Fish => FISH.as_bytes().to_vec(),
            other => {
                let mut text = Vec::new();
                clap_complete::generate(other, &mut super::command(), super::NAME, &mut text);
                text
            }
        };
        super::page::print_own(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what may stand at a word, a line each: the word, a tab, what it means.
fn answer(mut words: Vec<OsString>, mut at: usize) -> Result<ExitCode, Failure> {
    words.resize(at + 1, OsString::new());
    candidates::look_in(&words);
    // An option that holds for all verbs may stand before them.
    let leading = match words.get(1).and_then(|word| word.to_str()) {
        Some("--root") if at > 2 => 2,
        Some(word) if word.starts_with("--root=") && at > 1 => 1,
        _ => 0,
    };
    words.drain(1..=leading);
    at -= leading;
    let current = words[at].clone();
    let mut program = candidates::with_candidates(super::command());
    let verbs: Vec<OsString> = program
        .get_subcommands()
        .flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_visible_aliases()))
        .map(OsString::from)
        .collect();
    let here = std::env::current_dir().ok();
    // Where nothing may stand, there is nothing to offer.
    let found = complete(&mut program, words.clone(), at, here.as_deref()).unwrap_or_default();
    let of_a_verb = words.get(1).is_some_and(|word| at > 1 && verbs.contains(word));
    let wanted = |candidate: &&CompletionCandidate| {
        let value = candidate.get_value();
        let option = value.as_encoded_bytes().starts_with(b"-");
        // The first word is a verb or an option; after an option no verb follows.
        let placed = of_a_verb || option || verbs.contains(&value.to_owned()) == (at == 1);
        !candidate.is_hide_set() && placed && !(option && current.is_empty())
    };
    let mut page = Page::default();
    for candidate in found.iter().filter(wanted) {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        page.candidate(&candidate.get_value().to_string_lossy(), help);
    }
    page.print()?;
    Ok(ExitCode::SUCCESS)
}
