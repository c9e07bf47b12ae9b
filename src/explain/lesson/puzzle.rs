//! The third lesson: why is this image fat?

use super::course::Shown::Run;
use super::course::{Course, Step};

/// The third lesson.
pub const PUZZLE: Course = Course {
    name: "puzzle",
    prepare: "set -e
unionmount import base fat:0 >/dev/null
n=0
step() {
    unionmount create --name step fat:$n sh >/dev/null
    (cd \"$(unionmount mount step)\" && eval \"$2\")
    n=$((n + 1))
    unionmount commit -m \"$1\" step fat:$n >/dev/null
    unionmount rm -f step >/dev/null
}
fill() { head -c $1M /dev/zero | tr '\\0' y > $2; }
step 'apt-get install tool' 'mkdir -p usr/bin var/lib/apt/lists && fill 1 usr/bin/tool && fill 3 var/lib/apt/lists/index'
step 'download the sources' 'mkdir -p opt/src && fill 4 opt/src/app.tar'
step 'build the program' 'mkdir -p opt/app && fill 1 opt/app/program'
step 'rm -r /opt/src' 'rm -r opt/src'
step 'chmod -R go-rwx /usr' 'chmod -R go-rwx usr'
step 'rm -r /var/lib/apt/lists' 'rm -r var/lib/apt/lists'
unionmount tag fat:6 fat:latest
unionmount rmi fat:1 fat:2 fat:3 fat:4 fat:5 fat:6 >/dev/null
cat > slim.sh <<'end'
cd \"$1\"
mkdir -p usr/bin opt/app opt/src
head -c 1M /dev/zero > usr/bin/tool          # installed, its lists not kept
head -c 4M /dev/zero > opt/src/app.tar       # downloaded,
head -c 1M opt/src/app.tar > opt/app/program # used,
rm -r opt/src                                # and deleted in the same step
chmod go-rwx usr/bin/tool                    # of what is new here alone
end",
    steps: &[
        Step {
            name: "size",
            right: 2,
            commands: &[
                Run("unionmount images"),
                Run("unionmount create --name look fat sh"),
                Run("du -sh \"$(unionmount mount look)\" | cut -f 1"),
            ],
            says: &["fat "],
            ..Step::NONE
        },
        Step {
            name: "history",
            right: 3,
            commands: &[Run("unionmount history fat")],
            says: &["chmod -R go-rwx /usr"],
            ..Step::NONE
        },
        Step {
            name: "waste",
            right: 1,
            commands: &[Run("unionmount layers fat --waste")],
            says: &["opt/src/", "usr/lib/library.so", "28.6 %"],
            ..Step::NONE
        },
        Step {
            name: "file",
            commands: &[Run("unionmount explain fat /usr/lib/library.so")],
            says: &["2.00 MiB"],
            ..Step::NONE
        },
        Step {
            name: "slim",
            commands: &[
                Run("cat slim.sh"),
                Run("unionmount create --name slim fat:0 sh"),
                Run("sh slim.sh \"$(unionmount mount slim)\""),
                Run("unionmount commit -m 'all in one step' slim slim:1"),
                Run("unionmount layers slim:1 --ci"),
                Run("unionmount images"),
            ],
            says: &["slim "],
            ..Step::NONE
        },
    ],
};
