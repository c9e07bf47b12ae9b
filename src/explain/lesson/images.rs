//! The second lesson: images, containers and commit, with what a deletion in a later step costs.

use super::course::Shown::Run;
use super::course::{Course, Step};

/// The second lesson.
pub const IMAGES: Course = Course {
    name: "images",
    prepare: "cat > Dockerfile.fat <<'end'
FROM shop:2
RUN curl -O https://example.com/download.tar
RUN tar xf download.tar
RUN rm download.tar
end
cat > Dockerfile.slim <<'end'
FROM shop:2
RUN curl -O https://example.com/download.tar \\
 && tar xf download.tar \\
 && rm download.tar
end",
    steps: &[
        Step {
            name: "image",
            right: 2,
            commands: &[
                Run("unionmount import base shop:1"),
                Run("unionmount images"),
                Run("unionmount history shop:1"),
            ],
            says: &["Imported from base"],
            ..Step::NONE
        },
        Step {
            name: "container",
            right: 3,
            commands: &[
                Run("unionmount create --name build shop:1 sh"),
                Run("unionmount cp app/. build:/"),
                Run("rm \"$(unionmount mount build)/etc/os\""),
                Run("unionmount diff build"),
            ],
            says: &["A /etc/app.conf", "D /etc/os"],
            ..Step::NONE
        },
        Step {
            name: "commit",
            commands: &[
                Run("unionmount commit -m 'the program' build shop:2"),
                Run("unionmount history shop:2"),
                Run("unionmount image tree"),
            ],
            says: &["the program", "in 2 images"],
            ..Step::NONE
        },
        Step {
            name: "delete",
            commands: &[
                Run("unionmount create --name get shop:2 sh"),
                Run("head -c 8M /dev/zero > \"$(unionmount mount get)/download.tar\""),
                Run("unionmount commit -m download get shop:3"),
                Run("unionmount create --name clean shop:3 sh"),
                Run("rm \"$(unionmount mount clean)/download.tar\""),
                Run("unionmount commit -m 'clean up' clean shop:4"),
                Run("unionmount images"),
            ],
            says: &["shop         4 "],
            ..Step::NONE
        },
        Step {
            name: "docker",
            commands: &[Run("cat Dockerfile.fat"), Run("cat Dockerfile.slim")],
            says: &["RUN rm download.tar"],
            ..Step::NONE
        },
        Step {
            name: "waste",
            commands: &[
                Run("unionmount layers shop:4 --waste"),
                Run("unionmount create --name once shop:2 sh"),
                Run(
                    "cd \"$(unionmount mount once)\" && head -c 8M /dev/zero > download.tar && echo page > page && rm download.tar",
                ),
                Run("unionmount commit -m 'all in one step' once shop:5"),
                Run("unionmount layers shop:5 | tail -n 1"),
            ],
            says: &["20.0 %", "100.0 %"],
            ..Step::NONE
        },
        Step {
            name: "tar",
            commands: &[
                Run("mkdir out && unionmount save --format docker shop:4 | tar x -C out"),
                Run("for layer in out/*.tar; do tar tf $layer; done"),
            ],
            says: &[".wh.download.tar"],
            ..Step::NONE
        },
    ],
};
