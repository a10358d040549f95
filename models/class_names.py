"""What the classes of a network are called: ImageNet's from timm, the demo's from the demo set, or the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class ClassNames:
    """wnids and names by class index; empty where they are not known."""

    wnids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def wnid(self, index: int) -> str | None:
        return self.wnids[index] if self.wnids else None

    def name(self, index: int) -> str | None:
        return self.names[index] if self.names else None


def class_names_for(classifier: Classifier, names: Sequence[str] | None = None) -> ClassNames:
    """``names``, else those kept with the weights, else the demo's, else ImageNet's for 1,000 classes (timm's order,
    which is torchvision's).

    Raises ValueError when ``names`` are not one for each class.
    """
    count = classifier.num_classes
    if names is not None:
        if len(names) != count:
            raise ValueError(f"`class_names` has {len(names)} names, and the network {count} classes")
        return ClassNames(names=tuple(names))
    if classifier.class_names is not None:
        return ClassNames(names=classifier.class_names)
    if classifier.is_demo:
        from pipelines.data.demo import CLASSES

        return ClassNames(names=tuple(CLASSES))
    if count != 1000:
        return ClassNames()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.index_to_label_name(i) for i in range(count))
    return ClassNames(wnids, tuple(info.index_to_description(i) for i in range(count)))
