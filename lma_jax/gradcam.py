"""Shows what a network looks at: python -m lma_jax.gradcam --checkpoint runs/r50 --image cat.jpg --output cam.png

The picture shows the image as the network sees it and, over it, the evidence for its top class (or --class_id). A
folder instead of an image makes a contact sheet. --gates draws the gates of LMA layers instead.
"""

from pathlib import Path

from absl import flags

from lma_jax import cli
from lma_jax.errors import UserError, require_packages
from lma_jax.overwriting import Kind, require_outputs

MAX_IMAGES = 40


def define_flags() -> None:
    cli.define_checkpoint()
    flags.DEFINE_string("image", None, "Image file, or a folder of them.", required=True)
    flags.DEFINE_string("output", None, "Picture to write: .png, .pdf or .svg.", required=True)
    flags.DEFINE_enum("method", "gradcam++", ["gradcam++", "gradcam"], "How the channels are weighed.")
    layers = "Default: the last feature map; with --gates: four LMA layers from the first to the last."
    flags.DEFINE_list("layer", None, f"Paths such as layer3,layer4.1. {layers}")
    flags.DEFINE_integer("class_id", None, "Class to explain. Default: each image's top class.", lower_bound=0)
    flags.DEFINE_integer("top", 5, "Number of classes to print for each image.", lower_bound=1)
    flags.DEFINE_bool("gates", False, "Draw the gates of LMA layers over one image.")
    cli.define_force()


def main() -> None:
    require_packages("a picture", "matplotlib")
    from lma_jax import figures
    from lma_jax.checkpoint.format import load_checkpoint
    from lma_jax.checkpoint.restore import restore_model
    from lma_jax.images import image_files, read_image, read_images

    options = flags.FLAGS
    output, path = Path(options.output), Path(options.image)
    figures.require_suffix(output)
    files = image_files(path)
    if options.gates and (len(files) > 1 or options.class_id is not None):
        raise UserError("--gates takes one image file, and no --class_id: the gates are the same for all classes")
    picture = (output, Kind(holds=(figures.CREATOR,)))
    require_outputs({"output": picture}, inputs=[*files, Path(options.checkpoint, "checkpoints")], force=options.force)
    checkpoint = load_checkpoint(options.checkpoint, options.step)
    metadata, preprocessing = checkpoint.metadata, checkpoint.metadata.preprocessing
    if options.class_id is not None and options.class_id >= metadata.num_classes:
        raise UserError(f"--class_id={options.class_id}: the network's classes are 0 to {metadata.num_classes - 1}")
    folder = path if path.is_dir() else path.parent
    if len(files) == 1:
        read = [(files[0], read_image(files[0], preprocessing))]
    else:
        read = list(read_images(files[:MAX_IMAGES], preprocessing))
    images = {file.relative_to(folder).as_posix(): image for file, image in read}
    if not images:
        raise UserError(f"none of the first {MAX_IMAGES} images of {path} can be decoded")
    if len(files) > MAX_IMAGES:
        print(f"{path} holds {len(files):,} images, the first {MAX_IMAGES} are shown")

    model = restore_model(checkpoint)
    title = f"{metadata.model}, step {checkpoint.step:,}"
    try:
        if options.gates:
            [(name, image)] = images.items()
            figure = figures.draw_gates(model, name, image, preprocessing, title, layers=options.layer or [])
        else:
            figure = figures.draw_maps(
                model,
                images,
                preprocessing,
                title,
                layers=options.layer or [None],
                method=options.method,
                class_id=options.class_id,
                class_names=metadata.class_names,
                loss=metadata.config["loss"],
                top=options.top,
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    figures.save(figure, output)
    print(f"{output} written")


if __name__ == "__main__":
    cli.run(main, define_flags)
