"""pipelines.mask_dataset.videos: the kinds of video that are read, and playlists with the name of a video."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipelines.mask_dataset import videos


def write_video(path, kind, count=20):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), 25, (64, 48))
    assert writer.isOpened()
    for index in range(count):
        writer.write(np.full((48, 64, 3), 10 * index, np.uint8))
    writer.release()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".avi", "MJPG"), (".m4v", "mp4v"), (".mkv", "mp4v"), (".mov", "mp4v"), (".mp4", "mp4v"), (".webm", "VP80"),
     (".mpg", "mpg1"), (".mpeg", "mpg2")],
)  # fmt: skip
def test_every_kind_of_video_is_read(tmp_path, suffix, kind, capfd):
    assert suffix in videos.VIDEO_SUFFIXES
    write_video(tmp_path / f"clip{suffix}", kind)
    assert len(videos.frame_pairs(str(tmp_path / f"clip{suffix}"), gap=1, interval=4, max_pairs=9)) == 5


@pytest.mark.parametrize("name", ["beside.avi", "{folder}/beside.avi", "http://127.0.0.1:9/beside.avi"])
def test_playlists_named_like_videos_open_no_file(tmp_path, name, capfd):
    write_video(tmp_path / "beside.avi", "MJPG")
    name = name.format(folder=tmp_path)
    concat, stream = tmp_path / "concat.mp4", tmp_path / "stream.mkv"
    concat.write_text(f"ffconcat version 1.0\nfile {name}\n")
    stream.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n")
    for path in (concat, stream):
        with pytest.raises(videos.VideoError, match="not a video that FFmpeg can read"):
            videos.frame_pairs(str(path), gap=1, interval=4, max_pairs=9)
