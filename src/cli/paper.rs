//! What a repository needs on paper: how it is reached by a machine that has nothing, and the key where there is one.

use super::output;
use crate::clock;
use crate::config::{Config, S3};

/// The page of a repository without keys.
pub fn of_clear(config: &Config, place: &str) -> String {
    format!(
        "lastgood repository\n\nrepository  {place}\ncluster     {}\nencryption  none by lastgood: whoever can read the place can read the data\n\
         written     {}\n\n{}",
        config.cluster.name,
        output::time(clock::now()),
        to_restore(config, false)
    )
}

/// The last part of every page: what to type on the new machine.
pub fn to_restore(config: &Config, with_key: bool) -> String {
    let mut text = String::from("To restore on a machine that has nothing but lastgood and PostgreSQL: ");
    if with_key {
        text.push_str(
            "type the lines that begin with [1], [2] and so on into a file\n`paper-key` (spaces and upper or lower case do not matter; a typing error is named by its \
             line), then:\n\n",
        );
    }
    let (url, cluster) = (&config.repository.url, &config.cluster.name);
    let mut words: Vec<String> = if url.starts_with("s3://") {
        let lead = if with_key { "" } else { "\n" };
        text.push_str(&format!("{lead}these lines into a file `paper.toml`, and the store's credentials, which are not on this page, where it says:\n\n"));
        configuration(config).lines().for_each(|line| text.push_str(&format!("  {line}\n")));
        text.push_str("\nThen:\n\n");
        vec!["--config".into(), "paper.toml".into()]
    } else {
        if !with_key {
            text.push_str("bring the directory there, then:\n\n");
        }
        vec!["--repo".into(), url.clone(), "--cluster".into(), cluster.clone()]
    };
    if with_key {
        words.extend(["--key-file".into(), "paper-key".into()]);
    }
    let words = output::shell_words(&words);
    for rest in ["list", "verify --quick", "restore --to latest --into /var/lib/postgresql/restored"] {
        text.push_str(&format!("  lastgood {words} {rest}\n"));
    }
    text.push_str("\nEverything else: docs/guide/machine-gone.md\n");
    text
}

/// What of the configuration reaches the store, as a file of its own. No secret is in it.
fn configuration(config: &Config) -> String {
    let S3 { region, endpoint, path_style, ca_file, credentials_file, profile, .. } = &config.repository.s3;
    let quoted = |value: &str| toml::Value::String(value.into()).to_string();
    let mut lines =
        vec!["[repository]".to_string(), format!("url = {}", quoted(&config.repository.url)), "[repository.s3]".into()];
    let mut set = |name: &str, value: Option<String>| lines.extend(value.map(|value| format!("{name} = {value}")));
    set("endpoint", endpoint.as_deref().map(quoted));
    set("region", region.as_deref().map(quoted));
    set("path_style", path_style.then(|| "true".into()));
    set("conditional_create", (!config.repository.s3.conditional_create).then(|| "false".into()));
    set("profile", profile.as_deref().map(quoted));
    let path = |path: &std::path::PathBuf| quoted(&path.display().to_string());
    set("ca_file", ca_file.as_ref().map(|file| format!("{}   # keep a copy of this file too", path(file))));
    match credentials_file {
        Some(file) => set("credentials_file", Some(format!("{}   # make it: AWS format, with an access key", path(file)))),
        None => lines.push("# credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials".into()),
    }
    lines.extend(["[cluster]".into(), format!("name = {}", quoted(&config.cluster.name))]);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Repository;

    #[test]
    fn the_lines_on_paper_are_a_configuration() {
        let mut config = Config::default();
        let s3 = S3 {
            endpoint: Some("https://store.example.net:9000".into()),
            region: Some("eu \"west\"".into()),
            path_style: true,
            conditional_create: false,
            ca_file: Some("/etc/ssl/own.pem".into()),
            credentials_file: Some("/etc/lastgood/credentials".into()),
            ..S3::default()
        };
        config.repository = Repository { url: "s3://backups/shop".into(), s3, ..Repository::default() };
        config.cluster.name = "shop".into();
        let page = of_clear(&config, "s3://backups/shop");
        let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("  ") && !line.contains("lastgood --")).collect();
        let typed = Config::parse(std::path::Path::new("paper.toml"), &lines.join("\n")).unwrap();
        typed.check().unwrap();
        let (there, here) = (&typed.repository.s3, &config.repository.s3);
        assert_eq!((&typed.repository.url, &typed.cluster.name), (&config.repository.url, &config.cluster.name));
        assert_eq!((&there.endpoint, &there.region, there.path_style), (&here.endpoint, &here.region, true));
        assert_eq!((there.conditional_create, &there.credentials_file), (false, &here.credentials_file));
        assert!(page.contains("lastgood --config paper.toml restore --to latest"), "{page}");
    }
}
