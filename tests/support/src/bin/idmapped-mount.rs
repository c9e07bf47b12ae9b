//! `idmapped-mount SOURCE TARGET ON-DISK SHOWN`: bind-mounts SOURCE on TARGET, with 65536 ids from ON-DISK on shown as those
//! from SHOWN on. For scripts: mount(8) knows that since util-linux 2.39 only.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match &words[..] {
        [source, target, on_disk, shown] => match (on_disk.parse(), shown.parse()) {
            (Ok(on_disk), Ok(shown)) => {
                support::raw::idmapped_mount(source.as_ref(), target.as_ref(), on_disk, shown)
                    .map_err(|error| error.to_string())
            }
            _ => Err(format!("{on_disk} {shown}: not numbers")),
        },
        _ => Err("usage: idmapped-mount SOURCE TARGET ON-DISK SHOWN".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("idmapped-mount: {why}");
            ExitCode::FAILURE
        }
    }
}
