"""What an import takes from the header of a DICOM file: whose it is, and attributes of which no one is told.

A tag can hold anything that somebody once typed, so an attribute takes only values that the standard defines.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clusters.config import InputError
from clusters.storage import Folder
from data.cases import age_band
from data.dicom.decode import SAY_WHO, read_header, says_burned_in
from data.images import BadImage, Pixels, is_dicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TAGS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber", "Rows", "Columns"),
    *("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "ViewPosition", "ImageLaterality", "Laterality"),
    *("Modality", "BodyPartExamined", "SpecificCharacterSet", "SOPClassUID", *SAY_WHO),
)
SUFFIXES = (".dcm", ".dicom")
SEXES = {"M": "male", "F": "female", "O": "other"}
SIDES = {"L": "left", "R": "right", "B": "both"}
YEARS_IN = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
# PS3.3, C.8.7.1 (chest and skeleton) and CID 4014 (breast), with two words that devices write.
VIEWS = "AP PA LL RL RLD LLD RLO LLO LATERAL LAT CC MLO ML LM LMO XCC XCCL XCCM FB SIO ISO CV AT RM"
MODALITIES = "CR CT DX ES GM IO IVUS MG MR NM OCT OP OPT OT PT PX RF RG SM TG US XA XC DMS DG BI EPS IVOCT"
# PS3.16, table L-1: the common ones.
BODY_PARTS = (
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS "
    "CALF CAROTID CEREBELLUM CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE EAR "
    "ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP "
    "HUMERUS JAW KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM MOUTH NECK NOSE ORBIT OVARY "
    "PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RIB SCALP SCAPULA SCROTUM SHOULDER SKIN "
    "SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX THUMB THYMUS THYROID TIBIA TLSPINE TOE TONGUE "
    "TRACHEA TSPINE ULNA URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)


@dataclass(frozen=True)
class Header:
    """One file. `kind` is `image`, `unreadable` (with its reason), `not DICOM` or `without pixels`."""

    number: int
    file: str
    kind: str
    reason: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    accession: str = ""
    burned_in: bool = False
    attributes: dict[str, str] = field(default_factory=dict)

    def tag(self, name: str) -> str:
        """The value by which a table is joined."""
        return {
            "AccessionNumber": self.accession,
            "StudyInstanceUID": self.study,
            "PatientID": self.patient,
            "SOPInstanceUID": self.instance,
        }[name]


@dataclass(frozen=True)
class Unreadable:
    """Stands for reading an image of which the header could not be read."""

    reason: str

    def __call__(self) -> Pixels:
        """Raises BadImage."""
        raise BadImage(self.reason)


def header_of(folder: Folder, max_pixels: int, number: int, file: str) -> Header:
    """Look at one file. Raises InputError, naming its number, where the system does not let it be read."""
    try:
        with folder.open(file) as opened:
            begin = opened.read(1024)
            if not is_dicom(begin):
                claims = file.lower().endswith(SUFFIXES)
                reason = "not an image" if begin else "zero bytes"
                return Header(number, file, "unreadable" if claims else "not DICOM", reason)
            opened.seek(0)
            header = read_header(opened, TAGS, max_pixels)
        if header.get("Rows") is None or header.get("Columns") is None:
            return _without_size(number, file, header)
        return Header(
            number=number,
            file=file,
            kind="image",
            patient=_text(header, "PatientID"),
            study=_text(header, "StudyInstanceUID"),
            series=_text(header, "SeriesInstanceUID"),
            instance=_text(header, "SOPInstanceUID"),
            accession=_text(header, "AccessionNumber"),
            burned_in=says_burned_in(header),
            attributes=_attributes(header),
        )
    except BadImage as error:
        return Header(number, file, "unreadable", error.reason)
    except FileNotFoundError:  # a link to nowhere
        return Header(number, file, "unreadable", "absent")
    except OSError as error:
        raise InputError(f"cannot read file {number + 1}: {error.strerror or type(error).__name__}") from None


def _without_size(number: int, file: str, header: "Dataset") -> Header:
    """What says of itself that it is an image was cut off before its size, what says nothing is garbage.

    The rest are reports and the like.
    """
    stated = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if not stated:
        return Header(number, file, "unreadable", "undecodable")
    cut = "Image Storage" in getattr(stated, "name", "")
    return Header(number, file, "unreadable" if cut else "without pixels", "truncated" if cut else "")


def _attributes(header: "Dataset") -> dict[str, str]:
    body_part = _text(header, "BodyPartExamined").upper().replace(" ", "")
    view, modality = _text(header, "ViewPosition").upper(), _text(header, "Modality").upper()
    side = _text(header, "ImageLaterality") or _text(header, "Laterality")
    return {
        "sex": SEXES.get(_text(header, "PatientSex").upper(), ""),
        "age": _age(header),
        "view": view.lower() if view in VIEWS.split() else "",
        "laterality": SIDES.get(side.upper(), ""),
        "modality": modality if modality in MODALITIES.split() else "",
        "body_part": body_part.lower() if body_part in BODY_PARTS.split() else "",
    }


def _age(header: "Dataset") -> str:
    """A band of the age that is stated (`058Y`, `009M`), or else of that between birth and study."""
    stated = _text(header, "PatientAge").upper()
    if stated[-1:] in YEARS_IN and stated[:-1].isdecimal():
        return age_band(str(int(stated[:-1]) / YEARS_IN[stated[-1]]))
    birth, study = _text(header, "PatientBirthDate"), _text(header, "StudyDate")
    if not (len(birth) == len(study) == 8 and birth.isdecimal() and study.isdecimal()) or birth > study:
        return ""
    return age_band(str(int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:])))


def _text(header: "Dataset", tag: str) -> str:
    """A tag's value, trimmed; empty where there is none."""
    value = header.get(tag)
    return "" if value is None else str(value).strip(" \0")
