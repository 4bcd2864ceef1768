//! A stage as it is evaluated: what an instruction sees of those before it, and leaves to those after it.

use kiln_dockerfile::instruction::{Arg, CommandLine};
use kiln_dockerfile::lint::StageLint;

use super::{Action, Env, Op, copy};
use crate::image::Image;

const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A stage as it is evaluated.
#[derive(Clone)]
pub(super) struct State {
    pub image: Image,
    /// What variables expand to: the image's environment and the stage's ARGs.
    pub env: Env,
    /// ARGs in scope, in order.
    pub args: Vec<Arg>,
    /// The stage has a CMD of its own, which an ENTRYPOINT leaves alone.
    pub own_cmd: bool,
    pub ops: Vec<Op>,
    pub lint: StageLint,
}

impl State {
    /// Notes something to do with files, and its layer in the history.
    pub fn op(&mut self, step: u32, action: Action, created_by: String) {
        self.image.commit(step, created_by.clone(), true);
        self.ops.push(Op { step, created_by, action });
    }

    pub fn workdir(&self) -> String {
        let dir = self.image.config.working_dir.as_deref().unwrap_or_default();
        if dir.starts_with('/') { dir.to_owned() } else { copy::clean(dir) }
    }

    /// The words of a command; SHELL in front of one in shell form.
    pub fn argv(&self, command: &CommandLine) -> Vec<String> {
        if !command.shell_form {
            return command.args.clone();
        }
        let shell = self.image.config.shell.clone().filter(|shell| !shell.is_empty());
        let mut argv = shell.unwrap_or_else(|| DEFAULT_SHELL.map(str::to_owned).to_vec());
        argv.push(command.args.join(" "));
        argv
    }

    /// `|2 A=1 B= `: the ARGs in scope with the values that the command sees; nothing when there are none.
    pub fn args_text(&self) -> String {
        let mut values = Env::default();
        for arg in &self.args {
            let value = self.env.get(&arg.key).or(arg.value.as_deref()).unwrap_or_default();
            values.set(&arg.key, value);
        }
        let pairs = values.pairs();
        if pairs.is_empty() { String::new() } else { format!("|{} {} ", pairs.len(), pairs.join(" ")) }
    }
}
