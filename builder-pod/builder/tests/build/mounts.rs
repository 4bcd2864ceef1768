//! `RUN --mount` from Dockerfile to image.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kiln_contract::reason;

use crate::courier::SECRET;
use crate::{entries, manifest, run};

/// Every path of the image's own layers, with what is in it.
fn made(dir: &Path, digest: &str, bases: usize) -> Result<Vec<(String, u64, String)>> {
    let (manifest, _) = manifest(dir, digest)?;
    let mut all = Vec::new();
    for layer in manifest["layers"].as_array().context("no layers")?.iter().skip(bases) {
        all.extend(entries(dir, layer)?);
    }
    Ok(all)
}

pub fn are_seen_by_their_step_only(dir: &Path) -> Result<()> {
    let text = "FROM base AS made\n\
        RUN mkdir /out && echo from stage > /out/f\n\
        FROM base\n\
        RUN --mount=source=src,target=/src --mount=from=made,source=/out,target=/st,rw \
            cat /src/a /st/f > /one && echo changed > /st/f && test ! -e /src/skipped.log\n\
        RUN --mount=type=cache,target=/cache echo kept > /cache/f\n\
        RUN --mount=type=cache,target=/cache --mount=from=made,source=/out/f,target=/st cat /cache/f /st > /two\n\
        RUN --mount=type=tmpfs,target=/etc echo gone > /etc/f && test ! -e /src && test ! -e /cache\n";
    let files = [
        ("Dockerfile", text),
        (".dockerignore", "**/*.log\n"),
        ("src/a", "from context\n"),
        ("src/skipped.log", "x"),
    ];
    let ended = run(dir, &files, &[])?;
    let committed = ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?;
    let found = made(dir, &committed.digest, 2)?;
    let expected = [("one", "from context\nfrom stage\n"), ("two", "kept\nfrom stage\n")];
    ensure!(
        found == expected.map(|(path, text)| (path.to_owned(), 0, text.to_owned())),
        "only what the commands wrote elsewhere: {found:?}"
    );
    Ok(())
}

pub fn are_there_for_documents_and_triggers(dir: &Path) -> Result<()> {
    let text = "FROM base AS made\n\
        RUN mkdir /out && echo from stage > /out/f\n\
        FROM base AS parent\n\
        ONBUILD RUN --mount=from=made,source=/out,target=/st <<E\n\
        cat /st/f > /trigger\n\
        E\n\
        FROM parent\n\
        RUN --mount=source=src,target=/src --mount=type=secret,id=token,required --network=none <<'E'\n\
        #!/bin/sh\n\
        cat /run/secrets/token\n\
        cat /src/a - < /dev/null > /script\n\
        E\n\
        RUN --mount=type=tmpfs,target=/work cat > /work/f <<E && cat /work/f > /shell\n\
        from shell\n\
        E\n";
    let ended = run(dir, &[("Dockerfile", text), ("src/a", "from context\n")], &[])?;
    let committed = ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?;
    ensure!(ended.log.contains("\n***\n") && !ended.log.contains(SECRET), "{}", ended.log);
    let found = made(dir, &committed.digest, 2)?;
    let expected = [("trigger", "from stage\n"), ("script", "from context\n"), ("shell", "from shell\n")];
    ensure!(found == expected.map(|(path, text)| (path.to_owned(), 0, text.to_owned())), "{found:?}");
    Ok(())
}

/// Whether a file below `dir` holds `text`, and which.
fn holds(dir: &Path, text: &[u8]) -> Result<Option<String>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let found = if path.is_symlink() {
            None
        } else if path.is_dir() {
            holds(&path, text)?
        } else if path.is_file() && fs::read(&path)?.windows(text.len()).any(|part| part == text) {
            Some(path.display().to_string())
        } else {
            None
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

pub fn secrets_leave_no_trace(dir: &Path) -> Result<()> {
    let text = "FROM base\n\
        RUN --mount=type=secret,id=token,required --mount=type=secret,id=token,env=TOKEN,target=/etc/new/t \
            --mount=type=secret,id=other \
            cat /run/secrets/token /etc/new/t && echo \"$TOKEN\" && stat -c %a:%u /run/secrets/token && \
            test ! -e /run/secrets/other && echo -n $TOKEN | cat | grep -c '' > /count || echo failed\n\
        RUN test ! -e /run && test ! -e /etc/new && test -z \"$TOKEN\" && echo fine\n";
    let ended = run(dir, &[("Dockerfile", text)], &[])?;
    let committed = ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?;
    ensure!(ended.log.contains("\n***\n400:0\n"), "{}", ended.log);
    ensure!(ended.log.contains("fine"), "{}", ended.log);
    let state = serde_json::to_string(&ended.state)?;
    ensure!(!ended.log.contains(SECRET) && !state.contains(SECRET), "log or journal");
    let (_, config) = manifest(dir, &committed.digest)?;
    ensure!(!config.to_string().contains(SECRET) && !config.to_string().contains("TOKEN="), "{config}");
    for (path, _, text) in made(dir, &committed.digest, 2)? {
        ensure!(!path.contains("secret") && !path.contains("new") && !text.contains(SECRET), "{path}");
    }
    // Neither in the layer trees nor anywhere else in the workspace.
    ensure!(holds(&dir.join("work"), SECRET.as_bytes())?.is_none());

    let missing = dir.join("missing");
    fs::create_dir(&missing)?;
    let text = "FROM base\nRUN true\nRUN --mount=type=secret,id=other,required true\n";
    let failure = run(&missing, &[("Dockerfile", text)], &[])?.result.err().context("the build must fail")?;
    ensure!((failure.reason.as_str(), failure.line) == (reason::NOT_FOUND, Some(3)), "{failure:?}");
    Ok(())
}
