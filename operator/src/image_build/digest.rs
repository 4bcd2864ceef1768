//! The input digest: what a run answers. It covers what the user set and the contents of the source, and nothing that the
//! operator adds, so that an upgrade or a changed default rebuilds nothing.

use kiln_api::ImageBuildSpec;
use kiln_api::v1alpha1::Compression;
use kiln_contract::request::{Content, File};
use sha2::{Digest, Sha256};

/// A hash over length-prefixed fields: no two different inputs give the same bytes.
pub(super) struct Fields(Sha256);

impl Fields {
    pub(super) fn new(domain: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.text(domain);
        fields
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_be_bytes());
    }

    pub(super) fn option(&mut self, value: Option<&str>) {
        self.count(usize::from(value.is_some()));
        self.text(value.unwrap_or_default());
    }

    pub(super) fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// `sha256:…` over names and contents of the files, whatever their order.
pub fn source_digest(files: &[File]) -> String {
    let mut sorted: Vec<&File> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut fields = Fields::new("kiln source v1");
    fields.count(sorted.len());
    for file in sorted {
        fields.text(&file.path);
        match &file.content {
            Content::Text(text) => {
                fields.text("text");
                fields.text(text);
            }
            Content::Base64(text) => {
                fields.text("base64");
                fields.text(text);
            }
        }
    }
    format!("sha256:{}", fields.hex())
}

/// `v1:…` over all that decides on the image. `source` is [`source_digest`], or what names a source that is fetched
/// ([`super::remote::Remote::key`]), or absent when the source is missing.
pub fn input_digest(spec: &ImageBuildSpec, source: Option<&str>) -> String {
    // Every field is named here, so that a new one has to be put on one side or the other.
    let ImageBuildSpec {
        source: named,
        context_dir,
        dockerfile,
        target,
        args,
        secrets,
        ssh,
        labels,
        output,
        isolation,
        cache: _,
        service_account_name: _,
        resources: _,
        priority_class_name: _,
        timeout: _,
        retries: _,
        suspend: _,
        pod_ttl: _,
    } = spec;
    let mut fields = Fields::new("kiln input v1");
    fields.option(source);
    if source.is_none() {
        // A missing ConfigMap or Flux object: another name is another input.
        let flux = named.flux.as_ref().map(|f| super::flux::key(f.kind, &f.name));
        fields.option(named.config_map.as_ref().map(|c| c.name.as_str()).or(flux.as_deref()));
    }
    fields.text(context_dir);
    fields.text(dockerfile);
    fields.option(target.as_deref());
    let mut sorted: Vec<_> = args.iter().map(|a| (a.name.as_str(), a.value.as_str())).collect();
    sorted.sort_unstable();
    fields.count(sorted.len());
    for (name, value) in sorted {
        fields.text(name);
        fields.text(value);
    }
    fields.count(labels.len());
    for (name, value) in labels {
        fields.text(name);
        fields.text(value);
    }
    fields.text(&output.image);
    let mut tags: Vec<&str> = output.tags.iter().map(String::as_str).collect();
    tags.sort_unstable();
    fields.count(tags.len());
    tags.into_iter().for_each(|tag| fields.text(tag));
    fields.count(usize::from(output.insecure));
    fields.option(isolation.map(kiln_api::v1alpha1::Isolation::as_str));
    // Later than version 1 began: an object without any has the digest that it always had.
    let secrets = secrets.iter().map(|s| (&s.id, &s.secret_name, &s.key)).collect();
    let ssh = ssh.iter().map(|s| (&s.id, &s.secret_name, &s.key)).collect();
    given(&mut fields, "secrets", secrets);
    given(&mut fields, "ssh", ssh);
    if let Some(seconds) = output.source_date_epoch {
        fields.text("sourceDateEpoch");
        fields.text(&seconds.to_string());
    }
    // gzip said and gzip by default are one.
    if output.compression == Some(Compression::Zstd) {
        fields.text("compression");
        fields.text("zstd");
    }
    format!("v1:{}", fields.hex())
}

/// Names of what steps are given; contents are looked at by nobody but the build.
fn given(fields: &mut Fields, what: &str, mut list: Vec<(&String, &String, &String)>) {
    if list.is_empty() {
        return;
    }
    list.sort_unstable();
    fields.text(what);
    fields.count(list.len());
    for (id, secret, key) in list {
        fields.text(id);
        fields.text(secret);
        fields.text(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_api::v1alpha1::{BuildArg, BuildSecret, ConfigMapSource, Isolation, Output, SshKey};

    fn files() -> Vec<File> {
        let file = |path: &str, text: &str| File { path: path.into(), content: Content::Text(text.into()) };
        vec![file("Dockerfile", "FROM scratch\n"), file("a", "b")]
    }

    fn spec() -> ImageBuildSpec {
        ImageBuildSpec {
            output: Output { image: "a/b".into(), tags: vec!["x".into(), "y".into()], ..Output::default() },
            args: vec![
                BuildArg { name: "A".into(), value: "1".into() },
                BuildArg { name: "B".into(), value: "2".into() },
            ],
            ..ImageBuildSpec::default()
        }
    }

    fn secret(id: &str, secret_name: &str, key: &str) -> BuildSecret {
        BuildSecret { id: id.into(), secret_name: secret_name.into(), key: key.into() }
    }

    fn digest(change: impl FnOnce(&mut ImageBuildSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        input_digest(&spec, Some(&source_digest(&files())))
    }

    /// These values are promised: another one would rebuild every image in every cluster on an upgrade.
    #[test]
    fn golden() {
        assert_eq!(
            source_digest(&files()),
            "sha256:1419b1fc3b1b974fe0995dd48880ae157db5e6fda4419c439d3c36cef7b2ffe2"
        );
        assert_eq!(digest(|_| {}), "v1:99ba0ab14b5d729c0121262b3fa0c03b15d62715a9e3c6f48798c9a8ccb8ed1b");
    }

    #[test]
    fn what_decides_on_the_image_changes_it() {
        type Change = fn(&mut ImageBuildSpec);
        let changes: [Change; 17] = [
            |s| s.context_dir = "x".into(),
            |s| s.dockerfile = "x".into(),
            |s| s.target = Some("x".into()),
            |s| s.target = Some(String::new()),
            |s| s.args[0].value = "x".into(),
            |s| s.args[0].name = "X".into(),
            |s| drop(s.labels.insert("x".into(), "y".into())),
            |s| s.output.image = "x".into(),
            |s| drop(s.output.tags.pop()),
            |s| s.output.insecure = true,
            |s| s.output.source_date_epoch = Some(0),
            |s| s.output.compression = Some(Compression::Zstd),
            |s| s.isolation = Some(Isolation::UserNamespace),
            |s| s.secrets = vec![secret("a", "x", "k")],
            |s| s.secrets = vec![secret("a", "x", "k2")],
            |s| s.secrets = vec![secret("a", "x", "k"), secret("b", "x", "k")],
            |s| s.ssh = vec![SshKey { id: "a".into(), secret_name: "x".into(), key: "k".into() }],
        ];
        let mut all: std::collections::BTreeSet<_> = changes.into_iter().map(digest).collect();
        all.insert(digest(|_| {}));
        all.insert(input_digest(&spec(), None));
        let mut other = files();
        other[1].content = Content::Text("c".into());
        all.insert(input_digest(&spec(), Some(&source_digest(&other))));
        assert_eq!(all.len(), 20);
    }

    #[test]
    fn what_does_not_leaves_it() {
        type Change = fn(&mut ImageBuildSpec);
        let changes: [Change; 11] = [
            |s| s.args.reverse(),
            |s| s.output.tags.reverse(),
            |s| s.timeout = Some("5m".into()),
            |s| s.retries = 9,
            |s| s.suspend = true,
            |s| s.pod_ttl = "1h".into(),
            |s| s.service_account_name = "x".into(),
            |s| s.priority_class_name = Some("x".into()),
            |s| s.resources = Some(kiln_api::v1alpha1::Resources::default()),
            |s| s.output.compression = Some(Compression::Gzip),
            // Where the same contents come from does not matter.
            |s| s.source.config_map = Some(ConfigMapSource { name: "x".into() }),
        ];
        for change in changes {
            assert_eq!(digest(change), digest(|_| {}));
        }
        let both = |s: &mut ImageBuildSpec| s.secrets = vec![secret("a", "x", "k"), secret("b", "y", "k")];
        let turned = |s: &mut ImageBuildSpec| s.secrets = vec![secret("b", "y", "k"), secret("a", "x", "k")];
        assert_eq!(digest(both), digest(turned));
        let mut reversed = files();
        reversed.reverse();
        assert_eq!(source_digest(&reversed), source_digest(&files()));
    }
}
