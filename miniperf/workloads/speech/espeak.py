"""Speech of eSpeak NG, a formant synthesiser: a program of its own, which `synthesis.py` starts.

    python espeak.py FOLDER < utterances > sounds

FOLDER holds the shared library and its data. An utterance is a line of JSON, [text, voice, pitch, rate]. Written for it
are the number of its samples (int32), then these (int16, SAMPLE_RATE), little endian. Nothing is played: the engine
hands its samples to a callback before espeak_Synth returns.

One process speaks one list. The engine carries the phases of its oscillators and its random numbers from one utterance
to the next, and seeds the latter by the clock. Spoken twice in one process, the same text by the same voice gave other
samples with 88 of 104 voices. It still did after the engine was closed and opened again. Voices that breathe differed
between processes too. In a new process with a fixed seed the same list gives the same samples.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

SAMPLE_RATE = 22050  # Hz
SYNCHRONOUS, UTF8, POSITION_CHARACTER = 2, 1, 1  # constants of the engine's C interface, version 1.52
RATE, PITCH = 1, 3
SEED = 0


def load(folder: Path) -> Any:
    """The engine, ready to speak.

    Raises:
        OSError: there is no library in the folder, or it cannot be loaded.
        RuntimeError: it does not find its data.
    """
    names = {"darwin": "libespeak-ng.dylib", "win32": "espeak-ng.dll"}
    engine = ctypes.CDLL(str(folder / names.get(sys.platform, "libespeak-ng.so")))
    engine.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    engine.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    engine.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    count, position = ctypes.c_size_t, ctypes.c_uint
    engine.espeak_Synth.argtypes = [
        ctypes.c_char_p, count, position, ctypes.c_int, position, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    rate = engine.espeak_Initialize(SYNCHRONOUS, 0, str(folder).encode(), 0)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"eSpeak NG in {folder} gives {rate} samples a second, not {SAMPLE_RATE}")
    engine.espeak_ng_SetRandSeed(SEED)
    return engine


def main() -> None:
    folder = Path(sys.argv[1])
    engine = load(folder)
    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def keep(samples: int | None, count: int, events: int) -> int:
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    engine.espeak_SetSynthCallback(keep)
    for line in sys.stdin.readlines():
        text, voice, pitch, rate = json.loads(line)
        variant = folder / "espeak-ng-data" / "voices" / "!v" / voice.partition("+")[2]
        if engine.espeak_SetVoiceByName(voice.encode()) or not variant.is_file():  # it passes over unknown variants
            raise ValueError(f"there is no voice {voice}")
        engine.espeak_SetParameter(PITCH, pitch, 0)
        engine.espeak_SetParameter(RATE, rate, 0)
        pieces.clear()
        spoken = text.encode()
        engine.espeak_Synth(spoken, len(spoken) + 1, 0, POSITION_CHARACTER, 0, UTF8, None, None)
        sound = b"".join(pieces)
        sys.stdout.buffer.write((len(sound) // 2).to_bytes(4, "little") + sound)


if __name__ == "__main__":
    main()
