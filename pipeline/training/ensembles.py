"""Deep ensembles: several trainings of one data set as one model of the registry (Lakshminarayanan et al. 2017).

An ensemble is a card that names its members and carries a calibration of its own; the tensors stay in the folders of
the members. Their logits are averaged. The members must share classes, preprocessing, images and split, because
otherwise nobody could say which images none of them has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from models.artifacts.registry import EnsembleMember, ModelCard, load_card, publish
from models.artifacts.weights import load_network, preprocessing_of, tensors_digest
from models.inference.ensemble import Ensemble
from models.inference.predictor import chosen_device
from models.uncertainty.config import UncertaintySettings
from models.uncertainty.ood import load_feature_space
from pipeline.config.training import TrainingSettings
from pipeline.config.workspace import Workspace
from pipeline.core.errors import UserError
from pipeline.datasets.image_set import ImageSet
from pipeline.datasets.splits import recorded_split
from pipeline.execution.task import set_torch_threads
from pipeline.training.publish_model import common_fields, measure


def ensemble(workspace: Workspace, images: ImageSet, member_ids: Sequence[str]) -> ModelCard:
    """Make an ensemble of trained models and publish it; returns its card, also when it exists already.

    `images` are those that the members were trained with. Views and coverage are the training settings of the
    workspace; the other settings on the card are those of the first member by name.

    Raises
    ------
    UserError : no member, one twice, an ensemble as a member, members that do not belong together, or other images.
    models.errors.ModelError : a member is not there, or damaged.
    """
    cards = [load_card(workspace.models, model_id) for model_id in sorted(member_ids)]
    _check_members(cards)
    chosen = {name: getattr(workspace.settings.training, name) for name in UncertaintySettings.model_fields}
    settings = TrainingSettings.model_validate({**cards[0].settings, **chosen})
    parts = recorded_split(workspace.models, cards[0], images)
    members = [EnsembleMember(model_id=c.model_id, digest=tensors_digest(workspace.models / c.model_id)) for c in cards]
    model_id = _model_id(members, chosen)
    if (workspace.models / model_id / "card.json").is_file():
        return load_card(workspace.models, model_id)
    set_torch_threads(workspace.settings.workers.torch_threads())
    preprocessing = preprocessing_of(cards[0])
    networks = Ensemble(
        [load_network(workspace.models, card) for card in cards],
        [load_feature_space(workspace.models / card.model_id) for card in cards],
        preprocessing,
        views=settings.views,
        device=torch.device(chosen_device(workspace.settings.workers.device)),
    )
    card = ModelCard(
        model_id=model_id,
        variant=_common([card.variant for card in cards]),
        layout=_common([card.layout for card in cards]),
        parameters=sum(card.parameters for card in cards),
        members=members,
        views=settings.views,
        settings=settings.model_dump(),
        history=[],
        **common_fields(preprocessing, images, parts, _learned_from(cards)),
        **measure(networks, images.pixels(preprocessing, workspace.cache), images, parts, settings.coverage).fields(),
    )
    publish(workspace.models, card, lambda folder: None, files={"split.json": json.dumps(parts.to_dict())})
    return load_card(workspace.models, model_id)


def _check_members(cards: list[ModelCard]) -> None:
    """Raise UserError unless the models can be averaged and have seen the same images."""
    names = [card.model_id for card in cards]
    if not names:
        raise UserError("an ensemble needs members: name trained models (`morphcat models` lists them)")
    if len(set(names)) < len(names):
        raise UserError(f"a member is named twice in {', '.join(names)}: it would count twice")
    for card in cards:
        if card.members:
            raise UserError(f"{card.model_id} is an ensemble itself: name its members instead")
        for what, theirs, ours in (
            ("classes", card.class_slugs, cards[0].class_slugs),
            ("recipe", card.recipe_digest, cards[0].recipe_digest),
            ("images", card.data["digest"], cards[0].data["digest"]),
            ("split", card.split_digest, cards[0].split_digest),
        ):
            if theirs != ours:
                raise UserError(
                    f"{card.model_id} and {names[0]} cannot be members of one ensemble: their {what} differ ({theirs} "
                    f"and {ours}); train them with the same images and split, with other seeds"
                )


def _learned_from(cards: list[ModelCard]) -> dict[str, Any]:
    """Further entries of `data`: what all members say alike of labels that did not come with the images."""
    first = cards[0].data
    data: dict[str, Any] = {"simulated": any(card.data["simulated"] for card in cards)}
    for name in ("origins", "labels", "left_out"):
        if name in first and all(card.data.get(name) == first[name] for card in cards):
            data[name] = first[name]
    return data


def _model_id(members: list[EnsembleMember], settings: dict[str, Any]) -> str:
    what = json.dumps([[member.model_dump() for member in members], settings], sort_keys=True)
    return f"ensemble{len(members)}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


def _common(values: list[str]) -> str:
    """The value that all have, or all of them as text."""
    return "+".join(dict.fromkeys(values))
