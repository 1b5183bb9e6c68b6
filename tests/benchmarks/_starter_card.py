"""trainer/assets/starter.md, from the figures of starter.json, which tests/benchmarks/starter.py measured."""

import textwrap


def table(scores, size):
    """The scores at one size, as Markdown."""
    lines = [
        f"| hole ratio, {size} x {size} | starter | Telea | NS | gain | interpolated | SSIM: starter | Telea | NS |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for interval, of in scores.items():
        psnr, ssim = zip(*(of[method] for method in ("network", "telea", "ns")), strict=True)
        gain = psnr[0] - max(psnr[1:])
        interpolated = f"{of['interpolation'][0]:.2f}"
        numbers = [f"{x:.2f}" for x in psnr], [f"{gain:+.2f}", interpolated], [f"{x:.3f}" for x in ssim]
        lines.append(f"| {interval} | " + " | ".join(x for group in numbers for x in group) + " |")
    return "\n".join(lines)


def duration(seconds):
    if seconds is None:
        return "for an unknown time"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"


def name_terms(loss):
    return ", ".join(f"{name} {weight:g}" for name, weight in loss.items() if name != "vgg" and weight)


def bullet(text):
    return textwrap.fill(f"* {text}", width=120, subsequent_indent="  ") + "\n"


def finetune_of(facts):
    """The item about the finetune."""
    return bullet(
        f"**Finetune**: {facts['step']:,} steps, {facts['examples']:,} examples; {duration(facts['seconds'])} on "
        f"{facts['device']}. Weights of the loss: {name_terms(facts['loss'])}. The weights of this model lie "
        f"{facts['part']:.0%} of the way from those before it to those after it (network interpolation, arXiv "
        "1809.00219, section 3.4): there the paper's perceptual term is least, of held-out photographs, and narrow "
        "holes look sharper. All the way wide holes get textures that belong to nothing."
    )


def card_of(card):
    """starter.md, from starter.json."""
    config, photos = card["config"], card["photographs"]
    unet = config["unet"]
    facts = {
        "filters": ", ".join(map(str, unet["filters"])),
        "refine": f" and a stage of {unet['refine']} channels at full size" if unet["refine"] else "",
        "predicts": "which adds to interpolated holes" if unet["residual"] else "which predicts the image",
        "sides": " and ".join(f"{side} x {side}" for side in card["sides"]),
        "largest": max(card["sides"]),
        "time": duration(card["seconds"]),
        "losses": name_terms(config["loss"]),
        "finetuned": finetune_of(card["finetune"]) if "finetune" in card else "",
        "train": len(photos["train"]) - card["probes"],
        "val": len(photos["val"]),
        "held_out": textwrap.fill(
            "Held out: " + ", ".join(sorted(name.rpartition("/")[2] for name in photos["val"])),
            width=120,
            break_on_hyphens=False,
        ),
        "notes": "".join(map(bullet, card["notes"])),
        "tables": "\n\n".join(table(scores, size) for size, scores in card["scores"].items()),
    }
    copied = ("bytes", "step", "examples", "device", "date", "pairs")
    return CARD.format(**facts, **{key: card[key] for key in copied})


CARD = """# The starter model

A small network for the first minute, before any training of your own: `pipelines.inpaint --model starter`,
`pipelines.evaluate --model starter`, `predict.load_model(predict.starter())`. `tests/benchmarks/starter.py` trained it,
measured it, and wrote this card and `starter.json` ({date}).

* **Weights**: `starter.npz`, {bytes:,} bytes, kernels in float16. They are under this project's license. The pictures
  that they were trained on are not part of the package; `LICENSES.md` says where those came from.
* **Network**: the paper's UNet with {filters} filters{refine},
  {predicts}.
* **Training**: {step:,} steps, {examples:,} examples of {sides} pixels of {train} photographs;
  {time} on {device}. Weights of the loss: {losses}. Averaged weights (EMA).
{finetuned}{notes}
## Scores

In the holes of {pairs} pairs of {val} photographs that it never saw, with masks of all intervals and border classes.
PSNR in dB, what it gains on the better of Telea and Navier-Stokes (NS), and SSIM. Those two are OpenCV's, at radius 3
(`trainer/inference/baselines.py` says why); "interpolated" is what the network begins from, so what it has learned is
the difference to that.

{tables}

{held_out}.

## What it is not for

* Results that anyone relies on. It is no ImageNet or Places2 network: a few hundred photographs teach it to continue
  colors, edges and plain textures, not what a face, a word or a wheel looks like.
* Comparisons with published scores: train on the data that those were measured with.
* Large holes. It was trained on squares of at most {largest} pixels: the middle of a hole that is wider than that is a
  blur.
* Forensic, medical or scientific images: it invents pixels.
"""
