"""Writes a run for the Hugging Face Hub: python -m convert.to_hub --checkpoint runs/r50 --output hub/r50

The folder holds the weights, a config.json that timm and transformers read too, the class names, and a model card made
from the run. lma_jax.from_pretrained and lma_torch.from_pretrained load it. --repo uploads it as well. The network is
verified layer by layer before it is written.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli


def define_flags() -> None:
    cli.define_checkpoint()
    cli.define_force()
    flags.DEFINE_string("output", None, "Folder to write: a new one, or one that this command wrote.", required=True)
    flags.DEFINE_string("repo", None, "Also upload it to this repository of the Hugging Face Hub, such as org/name.")
    flags.DEFINE_string("license", "apache-2.0", "Licence of the weights, by the hub's identifier.")


def main() -> None:
    from convert.export.hub import require_repository, upload, write_hub_folder
    from convert.export.verified import verified_pair
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.hub_folder import CONFIG, require_own
    from lma_jax.overwriting import ANY, require_outputs

    options = flags.FLAGS
    output = Path(options.output)
    if options.repo is not None:
        require_repository(options.repo)
    require_own(output, force=options.force)
    inputs = [Path(options.checkpoint, "checkpoints")]
    require_outputs({"output": (output / CONFIG, ANY)}, inputs=inputs, force=options.force)
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    pair = verified_pair(checkpoint, source=options.checkpoint)
    described = dict(repo=options.repo, license_id=options.license, force=options.force)
    print(write_hub_folder(checkpoint, pair, output, **described))
    if options.repo is not None:
        print(upload(output, options.repo))


if __name__ == "__main__":
    cli.run(main, define_flags)
