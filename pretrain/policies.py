"""The settings of a view, and their presets by kind of image.

A preset fills in what a recipe does not say, and the resolved config holds every number, so that a run's identity
says them. Where a paper fixes no number, the reason stands beside ours.
"""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from clusters.config import Config

Range = tuple[PositiveFloat, PositiveFloat]
Policy = Literal["natural", "dermatology", "chest_xray", "pathology"]

PRESETS: dict[str, dict[str, Any]] = {
    # SimCLR (Chen et al., 2020, appendix A, and its code): the defaults of the fields. Its code leaves pixels in
    # 0..1; ours are normalised as ImageNet weights expect it, with which many runs start.
    "natural": {},
    # Azizi et al., 2021: as SimCLR. A lesion has no upright, so that it may stand on its head too.
    "dermatology": {"flip_vertical": 0.5},
    # Azizi et al., 2021: crop, jitter of half the strength, up to 45 degrees, horizontal flip, and no blur, which would
    # erase texture. Grey has neither hue nor saturation. The flip exchanges the heart's side and those of findings:
    # features then tell sides badly. It is on as in the paper; give flip_horizontal=0 where a side matters.
    # Mean and std are round figures for 8-bit radiographs: those of the datasets lie around them.
    "chest_xray": {
        "jitter_strength": 0.5,
        "saturation": 0.0,
        "hue": 0.0,
        "grey": 1.0,
        "blur": 0.0,
        "rotation_deg": 45.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    },
    # Tissue has no upright: all eight orientations. Magnification is known and tells, so that crops zoom in by 2.2 at
    # most; such a crop has room for the middle third (keep_centre), on which PatchCamelyon's label depends.
    # The jitter stays among colours that stains have: half of SimCLR's, since a hue turned by 0.2 makes eosin yellow.
    # Mean and std: of TCGA patches stained by H&E, as published with Kang et al., 2023 (Lunit).
    "pathology": {
        "crop_area": (0.2, 1.0),
        "flip_vertical": 0.5,
        "quarter_turns": True,
        "jitter_strength": 0.5,
        "mean": (0.703, 0.536, 0.661),
        "std": (0.217, 0.261, 0.207),
    },
}


class ViewConfig(Config):
    """How a view is made from an image. The defaults are those of the policy `natural`, SimCLR's."""

    policy: Policy = Field(
        default="natural",
        description="what fills in the settings that are not given: natural (SimCLR), dermatology (also vertical "
        "flips), chest_xray (grey, rotated, no blur), pathology (all orientations, milder colours)",
    )
    size_px: int = Field(default=224, ge=8, le=4096, description="side of a view, px")
    crop_area: Range = Field(default=(0.08, 1.0), description="share of the image's area that a crop keeps")
    crop_aspect: Range = Field(default=(3 / 4, 4 / 3), description="width / height of a crop")
    keep_centre: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="every crop holds the middle of the image, this share of each side: fine-tuning, 0.3333 for the "
        "32 px of a 96 px patch that its label is about",
    )
    flip_horizontal: float = Field(
        default=0.5, ge=0, le=1, description="probability; exchanges left and right, the heart's side too"
    )
    flip_vertical: float = Field(default=0.0, ge=0, le=1, description="probability; for what has no upright")
    quarter_turns: bool = Field(default=False, description="turned by 0, 90, 180 or 270 degrees, each as often")
    rotation_deg: float = Field(
        default=0.0, ge=0, le=180, description="rotated by up to so many degrees either way, corners black; 0: not"
    )
    jitter: float = Field(default=0.8, ge=0, le=1, description="probability of colour jitter")
    jitter_strength: float = Field(default=1.0, ge=0, le=1.25, description="times the next four; SimCLR: 1")
    brightness: float = Field(default=0.8, ge=0, le=1, description="largest change of the factor, at strength 1")
    contrast: float = Field(default=0.8, ge=0, le=1, description="largest change of the factor, at strength 1")
    saturation: float = Field(default=0.8, ge=0, le=1, description="largest change of the factor, at strength 1")
    hue: float = Field(default=0.2, ge=0, le=0.5, description="largest turn, share of the colour circle, at strength 1")
    grey: float = Field(default=0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(default=0.5, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: Range = Field(default=(0.1, 2.0), description="px at 224 px, scaled with size_px")
    solarise: float = Field(default=0.0, ge=0, le=1, description="probability of inverting pixels above half")
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="per colour, of pixels in 0..1")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.229, 0.224, 0.225), description="per colour, of pixels in 0..1"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """The policy's numbers where none is given."""
        if not isinstance(given, dict):
            return given
        policy = given.get("policy", "natural")
        return {**(PRESETS.get(policy, {}) if isinstance(policy, str) else {}), **given}

    @model_validator(mode="after")
    def _possible(self) -> "ViewConfig":
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must go from low to high")
        if self.crop_area[1] > 1:
            raise ValueError("crop_area is a share of the image's area: at most 1")
        if self.hue * self.jitter_strength > 0.5:
            raise ValueError("hue times jitter_strength is at most 0.5, half of the colour circle")
        self._check_centre()
        return self

    def _check_centre(self) -> None:
        """Raise ValueError where a crop could miss the middle that it is to keep."""
        if not self.keep_centre:
            return
        if self.rotation_deg:
            raise ValueError(
                "keep_centre: a rotated view may lose a part of the middle; set rotation_deg=0 (quarter_turns are fine)"
            )
        # A square image's smallest crop, at its most oblong, has to be as wide and high as the middle.
        least = self.keep_centre**2 * max(self.crop_aspect[1], 1 / self.crop_aspect[0])
        if self.crop_area[0] < least - 1e-9:
            raise ValueError(
                f"keep_centre: the middle {self.keep_centre:.4g} of each side does not fit into a crop of "
                f"{self.crop_area[0]:g} of the area with sides as {self.crop_aspect[0]:.3g} to "
                f"{self.crop_aspect[1]:.3g}; "
                + (
                    f"begin crop_area at {least:.3g} or more"
                    if least <= 1
                    else "narrow crop_aspect or lower keep_centre"
                )
            )
