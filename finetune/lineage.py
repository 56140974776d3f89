"""What a fine-tuning is called where runs are compared, and what it is made from."""

from collections.abc import Sequence

from clusters.storage import Folder
from clusters.tracking import Tracker, hash_of, recipe_name
from clusters.wandb_run import Made
from finetune.config import FinetuneConfig
from finetune.contenders import Contender


def tracker_of(config: FinetuneConfig) -> Tracker:
    """The metrics of a fine-tuning, beside others of its recipe with any seed."""
    name, told = config.out.rsplit("/", 1)[-1], config.model_dump(mode="json")
    recipe = {key: value for key, value in config.recipe().items() if key not in ("seed", "label_seed")}
    return Tracker(Folder(config.out), config.tracking, name, told, "fine-tuning", recipe_name(config.head, recipe))


def tell_lineage(tracker: Tracker, config: FinetuneConfig, dataset: str, entrants: Sequence[Contender]) -> None:
    """Tell W&B from which dataset, by its fingerprint, and from which encoders the results are made."""
    encoders = [Made("encoder", one.fingerprint, one.location) for one in entrants if one.kind == "encoder"]
    made_from = [Made("dataset", dataset, config.data), *encoders]
    identity = {"recipe": config.recipe(), "from": [one.fingerprint for one in made_from]}
    tracker.made(Made("results", hash_of(identity), config.out), made_from)
