"""The predictive coding module (PCM) of SSPL: aligns a visual feature map with its sound.

Song et al., CVPR 2022. Three levels of representation, r_1 (a quarter of the map's side, next to
the sound), r_2 (half of it) and r_3 (the map's own size), are refined in turn. Top-down, each level
is drawn towards a prediction from the level below it (r_3 -> r_2 -> r_1 -> sound); bottom-up, each
is corrected by the prediction error of the level above it (sound -> r_1 -> r_2 -> r_3):

    top-down     q_l = P_l r_{l+1},   r_l <- phi(BN((1 - b_l) r_l + b_l q_l))
    bottom-up    e_l = r_l - q_l,     r_l <- phi(BN(r_l + a_l E_l e_{l-1}))

with q_3 the visual feature map, e_0 = sound - pool(phi(P_0 r_1)), phi = GELU, and learnt rates
a, b >= 0 per channel. Details that the weights depend on, as in the authors' program:

- r_3 passes no batch norm top-down;
- q_1 and q_2 pass batch norm and GELU in the initial sweep, but are raw in the cycles;
- convolutions are shared by all cycles, batch norms by none: the number of cycles is part of the
  weights.

Deliberate differences, without effect on results: the sound's error, equal in all cells, is mapped
once instead of in each cell; maps of all sides that leave 2 when divided by 4 are taken, not only
14 x 14.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 3
Levels = tuple[Tensor, Tensor, Tensor]
"""Of each level, level 1 first: (B, D, h/4, w/4), (B, D, h/2, w/2), (B, D, h, w), rounded down"""


def _batch_norms(count: int, channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(count))


def _rates(value: float, channels: int) -> nn.ParameterList:
    return nn.ParameterList(torch.full((1, channels, 1, 1), value) for _ in range(LEVELS))


class PredictiveCodingModule(nn.Module):
    """Predictive coding between a visual feature map and an audio embedding; lists have level 1 first."""

    def __init__(self, num_cycles: int, *, channels: int = 512, audio_size: int = 128) -> None:
        """Build the module for T = `num_cycles` refinements after the initial sweep, at least 1."""
        super().__init__()
        # The order is that in which the authors' program draws its random weights.
        self.predict_audio = nn.Conv2d(channels, audio_size, 1)
        self.predict_level_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.predict_level_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.correct_level_1 = nn.ConvTranspose2d(audio_size, channels, 1, bias=False)
        self.correct_level_2 = nn.ConvTranspose2d(channels, channels, 3, stride=2, bias=False)
        self.output = nn.ConvTranspose2d(channels, channels, 1)
        self.correct_level_3 = nn.ConvTranspose2d(channels, channels, 3, padding=1, bias=False)

        self.correction_rates = _rates(1.0, channels)  # a
        self.prediction_rates = _rates(0.5, channels)  # b
        self.initial_prediction_norms = _batch_norms(LEVELS - 1, channels)
        self.initial_correction_norms = _batch_norms(LEVELS, channels)
        self.prediction_norms = nn.ModuleList(_batch_norms(LEVELS - 1, channels) for _ in range(num_cycles))
        self.correction_norms = nn.ModuleList(_batch_norms(LEVELS, channels) for _ in range(num_cycles))

    def forward(self, visual_feature_map: Tensor, audio_target: Tensor) -> Tensor:
        """Align visual features (B, D, h, w) with their sounds, (B, A) of unit norm: (B, D, h, w).

        h and w are 2 more than a multiple of 4, such as 14 of frames of 224 pixels.
        """
        guess_2 = self._predict(self.predict_level_2, visual_feature_map)  # (B, D, h/2, w/2)
        guess_2 = F.gelu(self.initial_prediction_norms[1](guess_2))
        guess_1 = self._predict(self.predict_level_1, guess_2)  # (B, D, h/4, w/4)
        guess_1 = F.gelu(self.initial_prediction_norms[0](guess_1))
        guesses = guess_1, guess_2, visual_feature_map
        states = self._sweep_up(guesses, guesses, audio_target, self.initial_correction_norms)
        for to_predict, to_correct in zip(self.prediction_norms, self.correction_norms, strict=True):
            states, guesses = self._sweep_down(states, visual_feature_map, to_predict)
            states = self._sweep_up(states, guesses, audio_target, to_correct)
        return self.output(states[2])

    def _sweep_down(
        self, states: Levels, visual_feature_map: Tensor, norms: nn.Module
    ) -> tuple[Levels, Levels]:
        """Blend each level with its prediction: new states and the predictions."""
        rate_1, rate_2, rate_3 = (F.relu(rate) for rate in self.prediction_rates)
        norm_1, norm_2 = norms.children()
        state_1, state_2, state_3 = states
        state_3 = F.gelu((1 - rate_3) * state_3 + rate_3 * visual_feature_map)
        guess_2 = self._predict(self.predict_level_2, state_3)
        state_2 = F.gelu(norm_2((1 - rate_2) * state_2 + rate_2 * guess_2))
        guess_1 = self._predict(self.predict_level_1, state_2)
        state_1 = F.gelu(norm_1((1 - rate_1) * state_1 + rate_1 * guess_1))
        return (state_1, state_2, state_3), (guess_1, guess_2, visual_feature_map)

    def _sweep_up(self, states: Levels, guesses: Levels, audio_target: Tensor, norms: nn.Module) -> Levels:
        """Correct each level by the prediction error of the level above it."""
        rate_1, rate_2, rate_3 = (F.relu(rate) for rate in self.correction_rates)
        norm_1, norm_2, norm_3 = norms.children()
        state_1, state_2, state_3 = states
        guess_1, guess_2, _ = guesses
        predicted_audio = F.gelu(self.predict_audio(state_1)).mean(dim=(2, 3))  # (B, A)
        audio_error = (audio_target - predicted_audio)[:, :, None, None]  # (B, A, 1, 1)
        state_1 = F.gelu(norm_1(state_1 + rate_1 * self.correct_level_1(audio_error)))
        correction = self.correct_level_2(state_1 - guess_1)  # (B, D, h/2, w/2)
        state_2 = F.gelu(norm_2(state_2 + rate_2 * correction))
        # Back to (B, D, h, w).
        error_2 = F.interpolate(state_2 - guess_2, scale_factor=2, mode="bilinear", align_corners=True)
        state_3 = F.gelu(norm_3(state_3 + rate_3 * self.correct_level_3(error_2)))
        return state_1, state_2, state_3

    @staticmethod
    def _predict(convolution: nn.Module, state: Tensor) -> Tensor:
        """Predict the next level, of half the side, rounded down."""
        return F.max_pool2d(convolution(state), 2)
