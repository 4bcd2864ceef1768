//! The `build` container's main.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kiln_contract::request::{BuildRequest, MAX_REQUEST};
use kiln_contract::{Failure, FailureClass, paths, reason};

use super::{Human, Settings, build, signals};
use crate::courier::{Client, Courier, SOCKET_WAIT};
use crate::engine::{Engine, Stop};
use crate::helper::{LocalEngine, Options};
use crate::plan::HOSTNAME_ARG;
use crate::sandbox::settings::Settings as StepSettings;
use crate::solve::failure::internal;
use crate::solve::log::{Entry, Log};

/// The builder is gone this long after its SIGTERM, whatever it waits for: 5 s are promised to the courier.
const GRACE: Duration = Duration::from_millis(4800);

/// Carries out the request that is mounted into the pod; its exit code is 0 when the image is tagged, else 1.
pub fn main_in_pod() -> ExitCode {
    let stop = Stop::default();
    let mut log = Human::new(std::io::stdout());
    let on_terminate = {
        let stop = stop.clone();
        move || {
            stop.stop(reason::POD_DELETED);
            std::thread::sleep(GRACE);
            std::process::exit(1);
        }
    };
    if let Err(error) = signals::on_terminate(on_terminate) {
        log.entry(Entry::Warning { text: &format!("SIGTERM will not be noticed: {error}") });
    }
    let request = match read_request(Path::new(paths::REQUEST)) {
        Ok(request) => request,
        Err(message) => return report(&internal(message), &stop, &mut log),
    };
    let mut steps = StepSettings::default();
    if let Some(name) = request.args.get(HOSTNAME_ARG)
        && let Err(problem) = steps.set_hostname(name)
    {
        let text = format!("build argument {HOSTNAME_ARG}: {problem}");
        let failure = Failure::new(FailureClass::User, reason::INVALID_SPEC, text);
        return report(&failure, &stop, &mut log);
    }
    let alike = steps.alike();
    let settings = Settings {
        socket: Path::new(paths::SOCKET),
        work_dir: Path::new(paths::WORK_DIR),
        stop: &stop,
        alike: &alike,
        start_engine: &|work_dir, isolation| {
            let claim = Path::new(paths::CACHE_MOUNTS_DIR);
            let options = Options {
                settings: steps.clone(),
                cache_dir: claim.exists().then(|| claim.to_owned()),
                caches_in_place: true,
                ..Options::default()
            };
            let engine: Arc<dyn Engine> = Arc::new(LocalEngine::start(work_dir, isolation, options)?);
            Ok(engine)
        },
        log: &mut log,
    };
    match build(&request, settings) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read_request(path: &Path) -> Result<BuildRequest, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_REQUEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("the request {} can't be read: {e}", path.display()))?;
    BuildRequest::parse(&bytes)
}

/// A failure before there is a request.
fn report(failure: &Failure, stop: &Stop, log: &mut dyn Log) -> ExitCode {
    log.entry(Entry::Failed { failure, excerpt: None });
    let told =
        Client::attach(Path::new(paths::SOCKET), stop, SOCKET_WAIT).and_then(|courier| courier.fail(failure));
    if let Err(error) = told {
        log.entry(Entry::Warning { text: &format!("the failure could not be reported: {error}") });
    }
    ExitCode::FAILURE
}
