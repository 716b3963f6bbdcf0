//! `lastgood key`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use zeroize::Zeroizing;

use super::context::{self, Global};
use super::guard::Desk;
use super::keys::{self, Need};
use super::{error, output, paper};
use crate::clock;
use crate::config::Config;
use crate::repo::RepoError;
use crate::repo::repository::Repository;
use crate::repo::seal::create::write_key_file;
use crate::repo::seal::keys::Keys;
use crate::repo::seal::slot::{MEMORY_KIB, Slot, To, Wrap};
use crate::repo::seal::{Role, Seal, rotation, text};

/// Who may open an encrypted repository: add, remove, list, export and rotate its keys
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  lastgood key list\n  lastgood key export --paper\n  lastgood key export --writer --to /etc/lastgood.key"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Add),
    Remove(Remove),
    List(List),
    Export(Export),
    Rotate(Rotate),
}

/// Let another passphrase or age recipient open the repository
///
/// Without --passphrase-file and --recipient a new passphrase is asked for at the terminal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood key add --recipient age1ql3z… --comment 'operations, in the safe'\n  \
lastgood key add --passphrase-file new-passphrase --role writer")]
struct Add {
    /// File with the new passphrase and nothing else
    #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
    passphrase_file: Option<PathBuf>,
    /// age public key
    #[arg(long, value_name = "age1…")]
    recipient: Option<String>,
    /// reader opens everything; writer writes everything and reads no data
    #[arg(long, default_value = "reader", value_parser = ["reader", "writer"])]
    role: String,
    /// For people: whose it is, where it lies
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

/// Take a slot away
///
/// Who had its secret may have kept the key itself: `lastgood key rotate` shuts them out of what is written from then on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood key remove 3f9a01c2")]
struct Remove {
    /// Id of the slot, from `lastgood key list`
    id: String,
}

/// Show the slots, the key id and the epoch
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood key list --json | jq .slots")]
struct List {}

/// Write the key itself to a file, or as text for paper
///
/// `[encryption] key_file` and --key-file read both back. The key opens the repository without a passphrase: keep it as you
/// would keep the data.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood key export --writer --to /etc/lastgood.key\n  lastgood key export --paper | lp")]
struct Export {
    /// Only what a database host needs: writes everything, reads no data
    #[arg(long)]
    writer: bool,
    /// New file, readable by its owner only
    #[arg(long, value_name = "FILE", required_unless_present = "paper", conflicts_with = "paper")]
    to: Option<PathBuf>,
    /// Print a page to keep in a safe, with what to do when nothing else is left; also for a repository without keys
    #[arg(long)]
    paper: bool,
}

/// Begin a new key epoch: what is written from now on is sealed with new keys
///
/// Everything older stays readable. Recipients and the configured passphrase get the new key; hosts with a key file go on
/// writing with the old one until they get a new file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood key rotate\n  lastgood key rotate --drop-unknown")]
struct Rotate {
    /// Leave out slots of passphrases that are not the configured one
    #[arg(long)]
    drop_unknown: bool,
}

/// What every key command works on.
struct Opened {
    config: Config,
    keys: Keys,
    repository: Repository,
}

impl Opened {
    fn seal(&self) -> anyhow::Result<&Seal> {
        let seal = self.repository.vault().seal();
        Ok(seal.ok_or_else(|| RepoError::NotSealed { place: self.repository.storage().place().into() })?)
    }
}

pub async fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let config = global.configuration()?;
    let keys = keys::keys(&config, Need::Read)?;
    let repository = Repository::open(context::storage(&config).await?, &keys).await?;
    if repository.vault().seal().is_none() {
        let place = repository.storage().place();
        if let Command::Export(Export { paper: true, writer: false, .. }) = args.command {
            let page = paper::of_clear(&config, place);
            match global.json {
                true => output::json(&serde_json::json!({ "event": "result", "action": "export", "paper": page })),
                false => output::block(page),
            }
            return Ok(0);
        }
        let text =
            format!("{place} is not encrypted, so it has no keys; encryption is chosen when `lastgood init` makes a repository");
        output::error(&anyhow::anyhow!(text), error::REFUSED, global.json);
        return Ok(error::REFUSED);
    }
    let opened = Opened { config, keys, repository };
    let operation = match &args.command {
        Command::List(_) => return list(global, &opened).await,
        Command::Add(_) => "key add",
        Command::Remove(_) => "key remove",
        Command::Export(_) => "key export",
        Command::Rotate(_) => "key rotate",
    };
    let cluster = opened.repository.cluster(&opened.config.cluster.name);
    let desk = Desk::of(operation, &cluster, global);
    let attempt = desk.begins().await;
    let changed = match args.command {
        Command::Add(args) => add(global, &opened, args).await,
        Command::Remove(args) => remove(global, &opened, &args.id).await,
        Command::Export(args) => export(global, &opened, args),
        Command::Rotate(args) => rotate(global, &opened, args.drop_unknown).await,
        Command::List(_) => unreachable!("answered above"),
    };
    desk.ends(attempt, changed).await
}

/// Every change of the keys ends here, after it was made: what was done, as JSON for programs and as lines for people.
fn changed(global: &Global, action: &str, details: serde_json::Value, lines: &[String]) -> anyhow::Result<u8> {
    if global.json {
        output::json(&serde_json::json!({ "event": "result", "action": action, "key": details }));
    } else {
        lines.iter().for_each(output::line);
    }
    Ok(0)
}

/// A slot without what is wrapped in it.
fn describe(slot: &Slot) -> serde_json::Value {
    let recipient = match &slot.wrap {
        Wrap::Recipient { recipient, .. } => Some(recipient),
        Wrap::Passphrase { .. } => None,
    };
    serde_json::json!({ "id": slot.id, "kind": slot.wrap.kind(), "role": slot.role, "created": slot.created,
        "comment": slot.comment, "recipient": recipient })
}

async fn add(global: &Global, opened: &Opened, args: Add) -> anyhow::Result<u8> {
    let memory_kib = opened.config.encryption.argon2_memory_kib.unwrap_or(MEMORY_KIB);
    let passphrase: Zeroizing<String>;
    let to = match (&args.recipient, &args.passphrase_file) {
        (Some(recipient), _) => To::Recipient(recipient),
        (None, Some(path)) => {
            let text = keys::read_secret(path, "--passphrase-file")?;
            passphrase = keys::trimmed(&text).with_context(|| format!("--passphrase-file {} is empty", path.display()))?;
            To::Passphrase { passphrase: &passphrase, memory_kib }
        }
        (None, None) => {
            passphrase = keys::ask_new_passphrase()?;
            To::Passphrase { passphrase: &passphrase, memory_kib }
        }
    };
    let role = if args.role == "writer" { Role::Writer } else { Role::Reader };
    let slot = rotation::add(opened.repository.vault(), &to, role, args.comment).await?;
    let line = format!("slot {}: {} {}, may open the repository now", slot.id, slot.role, slot.wrap.kind());
    changed(global, "add", describe(&slot), &[line])
}

async fn remove(global: &Global, opened: &Opened, id: &str) -> anyhow::Result<u8> {
    let removed = rotation::remove(opened.repository.vault(), id).await?;
    let mut lines = vec![
        format!("slot {id} is removed"),
        "  who had its secret may have kept the key, and may read what was written with it;".into(),
        "  `lastgood key rotate` shuts them out of what is written from then on".into(),
    ];
    if !removed.left.is_empty() {
        let left: Vec<String> = removed.left.iter().map(ToString::to_string).collect();
        lines.push(format!("  these still hold the slot and could not be deleted from here: {}", left.join(", ")));
    }
    let left: Vec<&str> = removed.left.iter().map(|key| key.as_str()).collect();
    changed(global, "remove", serde_json::json!({ "slot": describe(&removed.slot), "left": left }), &lines)
}

async fn list(global: &Global, opened: &Opened) -> anyhow::Result<u8> {
    let seal = opened.seal()?;
    let keyring = rotation::current(opened.repository.vault()).await?;
    let here = format!("{} key of epoch {}", seal.role(), seal.newest().0);
    if global.json {
        let slots: Vec<_> = keyring.slots.iter().map(describe).collect();
        output::json(&serde_json::json!({ "event": "result", "key_id": seal.key_id(), "epoch": keyring.epoch,
            "number": keyring.number, "slots": slots, "own_role": seal.role(), "own_epoch": seal.newest().0 }));
        return Ok(0);
    }
    output::line(format!("key id {}, epoch {}; this host has the {here}", seal.key_id(), keyring.epoch));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["slot", "role", "kind", "since", "comment"]);
    for slot in &keyring.slots {
        let whose = match (&slot.wrap, &slot.comment) {
            (_, Some(comment)) => comment.clone(),
            (Wrap::Recipient { recipient, .. }, None) => recipient.clone(),
            (Wrap::Passphrase { .. }, None) => String::new(),
        };
        let (id, whose) = (output::escaped(&slot.id), output::escaped(&whose));
        table.add_row([&*id, &slot.role.to_string(), slot.wrap.kind(), &output::time(slot.created), &*whose]);
    }
    output::block(table);
    Ok(0)
}

fn export(global: &Global, opened: &Opened, args: Export) -> anyhow::Result<u8> {
    let seal = opened.seal()?;
    let writer = seal.to_writer();
    if !args.writer && seal.role() == Role::Writer {
        return Err(RepoError::NeedsReader { what: "to export a reader's (or add --writer)".into() }.into());
    }
    let exported = if args.writer { &writer } else { seal };
    let page = page(opened, exported);
    let Some(path) = args.to else {
        if global.json {
            let page = page.as_str();
            output::json(&serde_json::json!({ "event": "result", "action": "export", "role": exported.role(), "paper": page }));
        } else {
            output::block(page.as_str());
        }
        return Ok(0);
    };
    write_key_file(&path, &page)?;
    let details =
        serde_json::json!({ "role": exported.role(), "file": path, "epoch": exported.newest().0, "key_id": seal.key_id() });
    let line = format!("{} key of epoch {} is in {}", exported.role(), exported.newest().0, path.display());
    changed(global, "export", details, &[line])
}

/// The key as text, with all that is needed to use it.
fn page(opened: &Opened, seal: &Seal) -> Zeroizing<String> {
    let place = opened.repository.storage().place().to_string();
    let epochs: Vec<String> = seal.epochs().keys().map(u32::to_string).collect();
    let what = match seal.role() {
        Role::Reader => "Whoever has this can read everything in the repository, and write into it.",
        Role::Writer => "Whoever has this can write into the repository, and read its names and sizes, but no data.",
    };
    let mut text = Zeroizing::new(format!(
        "lastgood {} key\n\nrepository  {place} (id {})\nkey id      {}\nepochs      {}\nwritten     {}\n\n{what}\n\n",
        seal.role(),
        seal.repository(),
        seal.key_id(),
        epochs.join(", "),
        output::time(clock::now()),
    ));
    text.push_str(&text::write(seal));
    if seal.role() == Role::Reader {
        text.push('\n');
        text.push_str(&paper::to_restore(&opened.config, true));
    }
    text
}

async fn rotate(global: &Global, opened: &Opened, drop_unknown: bool) -> anyhow::Result<u8> {
    let memory_kib = opened.config.encryption.argon2_memory_kib.unwrap_or(MEMORY_KIB);
    let rotated = rotation::rotate(opened.repository.vault(), &opened.keys, memory_kib, drop_unknown).await?;
    let epoch = rotated.seal.newest().0;
    let mut lines = vec![format!("key epoch {epoch} has begun; everything older stays readable")];
    let kept: Vec<&str> = rotated.slots.iter().map(|slot| slot.id.as_str()).collect();
    lines.push(format!("  slots: {}", kept.join(", ")));
    for slot in &rotated.dropped {
        let comment = slot.comment.as_deref().map(|c| format!(" ({c})")).unwrap_or_default();
        lines.push(format!("  not carried over: {}{comment}; `lastgood key add` makes it anew", slot.id));
    }
    lines.push(
        "  hosts with a key file write with the old key until they get a new one: lastgood key export --writer --to FILE".into(),
    );
    lines.push("  and a page in the safe does not open what is new: lastgood key export --paper".into());
    let dropped: Vec<_> = rotated.dropped.iter().map(describe).collect();
    let slots: Vec<_> = rotated.slots.iter().map(describe).collect();
    changed(global, "rotate", serde_json::json!({ "epoch": epoch, "slots": slots, "dropped": dropped }), &lines)
}
