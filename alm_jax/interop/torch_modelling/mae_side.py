"""Masked autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alm_jax.interop.torch_modelling.audio_side import AudioSide, Heard
from alm_jax.interop.torch_modelling.mae_decoders import ConcatenatingDecoder, VitDecoder
from alm_jax.interop.torch_modelling.patches import Patches, patch_shape
from alm_jax.interop.torch_modelling.swin_decoder import SwinDecoder

DECODERS: dict[str, Any] = {
    "concatenated": ConcatenatingDecoder,
    "vit": VitDecoder,
    "swin": SwinDecoder,
}


class MaeSide(AudioSide):
    """The decoder that predicts dropped patches."""

    def build(self, fields: Mapping[str, Any]) -> None:
        """Makes the parts that config.json names."""
        super().build(fields)
        c = fields["model"]["mae_decoder"]
        shape = patch_shape(fields["patches"], fields["frontend"]["num_mels"])
        self.mae_decoder = DECODERS[c["decoder"]](c, shape, self.audio.width)

    def predict(self, patches: Patches, visible: Any, dropped: Any) -> Tensor:
        """Pixels [B, M, P] of the slots `dropped`, from those that are `visible`."""
        seen = patches.take(visible)
        return self.mae_decoder(self.audio(seen), seen, patches.take(dropped))

    def reconstruct(
        self, waveform: Tensor, lengths: Tensor, visible: Any, dropped: Any
    ) -> tuple[Tensor, Patches]:
        """What the model makes of the patches that it does not see.

        Args:
          waveform: float [B, S] in [-1, 1].
          lengths: [B] valid samples.
          visible: slots that the encoder sees, [n] for every clip or [B, n] for each. Slot
            i * rows + j is column i in time and row j in frequency.
          dropped: slots to predict, in the same form, M of them.

        Returns:
          Pixels [B, M, P] of `dropped`, and the clips' own patches, whose mask tells the slots that
          lie behind a clip's end.
        """
        _, patches = self.cut(waveform, lengths)
        return self.predict(patches, visible, dropped), patches

    def compared(self, golden: Mapping[str, Any], heard: Heard) -> dict[str, tuple[Any, Tensor]]:
        """(wanted, found) of each output in golden.npz, by name."""
        found = super().compared(golden, heard)
        wanted = golden["mae_prediction"]
        patches = Patches(*(part[: len(wanted)] for part in heard.patches))
        mask = patches.take(golden["dropped"]).mask
        pixels = self.predict(patches, golden["visible"], golden["dropped"])
        found["mae_prediction"] = (wanted[mask.numpy(force=True)], pixels[mask])
        return found
