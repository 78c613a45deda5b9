"""The languages that Whisper knows, by its codes and by the names that OpenAI's verbose answers use."""

import difflib
from typing import Final

from oxlo_local.errors import BadRequest
from oxlo_local.protocol.parts import printable

NAMES: Final = dict(
    pair.split(":")
    for pair in (
        "en:english zh:chinese de:german es:spanish ru:russian ko:korean fr:french ja:japanese pt:portuguese "
        "tr:turkish pl:polish ca:catalan nl:dutch ar:arabic sv:swedish it:italian id:indonesian hi:hindi fi:finnish "
        "vi:vietnamese he:hebrew uk:ukrainian el:greek ms:malay cs:czech ro:romanian da:danish hu:hungarian ta:tamil "
        "no:norwegian th:thai ur:urdu hr:croatian bg:bulgarian lt:lithuanian la:latin mi:maori ml:malayalam cy:welsh "
        "sk:slovak te:telugu fa:persian lv:latvian bn:bengali sr:serbian az:azerbaijani sl:slovenian kn:kannada "
        "et:estonian mk:macedonian br:breton eu:basque is:icelandic hy:armenian ne:nepali mn:mongolian bs:bosnian "
        "kk:kazakh sq:albanian sw:swahili gl:galician mr:marathi pa:punjabi si:sinhala km:khmer sn:shona yo:yoruba "
        "so:somali af:afrikaans oc:occitan ka:georgian be:belarusian tg:tajik sd:sindhi gu:gujarati am:amharic "
        "yi:yiddish lo:lao uz:uzbek fo:faroese ps:pashto tk:turkmen nn:nynorsk mt:maltese sa:sanskrit "
        "lb:luxembourgish my:myanmar bo:tibetan tl:tagalog mg:malagasy as:assamese tt:tatar haw:hawaiian ln:lingala "
        "ha:hausa ba:bashkir jw:javanese su:sundanese yue:cantonese"
    ).split()
) | {"ht": "haitian creole"}
_CODES: Final = {name: code for code, name in NAMES.items()}
_ISO: Final = {"jv": "jw"}  # Whisper has an old code for it
AUTO: Final = "auto"


def code_of(text: str, param: str) -> str | None:
    """Whisper's code for an ISO 639-1 code or an English name; None for "auto". Raises BadRequest for others."""
    given = text.strip().lower()
    if given == AUTO:
        return None
    code = _CODES.get(given, _ISO.get(given, given))
    if code in NAMES:
        return code
    near = difflib.get_close_matches(given, [*_CODES, *NAMES], n=1, cutoff=0.7) or [given.partition("-")[0]]
    known = near[0] in NAMES or near[0] in _CODES
    hint = f" Did you mean '{near[0]}'?" if known else ""
    raise BadRequest(
        f"'{param}' is {printable(text)}, which is no language that Whisper knows; send an ISO 639-1 code such as "
        f"'en', or leave it out to have the language detected.{hint}",
        param=param,
    )


def name_of(code: str) -> str:
    """Its English name in lower case, as OpenAI's verbose answers have it; a code that nobody knows stays itself."""
    return NAMES.get(code, code)
