//! `ls`: what is in a snapshot.

use super::entries;
use crate::cli::args::LsArgs;
use crate::cli::context::Context;
use crate::cli::error::{Doing, Failure};
use crate::cli::names::split_snapshot;
use crate::ops::OpError;
use crate::ops::look::{self, Appetite};
use crate::repo::reader::TreeReader;

pub fn run(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let wanted = split_snapshot(&args.snapshot)?;
    let (repo, snapshot) = context.repo_with_snapshot(&wanted.snapshot, &args.filter)?;
    let appetite = if args.recursive && wanted.path.is_none() {
        Appetite::Much
    } else {
        Appetite::Little
    };
    let reader = look::open_reader(&repo, &snapshot, appetite)?;
    let mut nodes = TreeReader::new(&reader);
    let mut closed = None;
    let listed = look::list(
        &snapshot,
        wanted.path.as_deref(),
        args.recursive,
        &mut nodes,
        &mut |path, entry| {
            entries::show(
                &context.output,
                entries::Names::of(&snapshot.manifest),
                path,
                entry,
                args.long,
            )
            .map_err(|failure| {
                closed = Some(failure);
                OpError::Interrupted
            })
        },
    );
    closed.map_or_else(|| listed.doing("listing the snapshot"), Err)
}
