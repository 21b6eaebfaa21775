"""The replay memory of acer.py: segments of games, compressed, as files of the run directory.

Frames are stored once: 50,000 steps of 16 games, 6.8 GB, take 0.1 to 0.6 GB of the disk (Yars'
Revenge: 1.4), and no memory. Shapes: T num_steps, N num_envs, A number of actions.
"""

import os
import shutil
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
from ppo_atari import Stop, device_of

COMPRESSION = 5  # by this the worst game, Yars' Revenge, shrinks; all others by 11 or more


def restack(frames, begins):
    """obs [T + 1, 84, 84, 4] from frames [T + 4, 84, 84].

    begins[t] says that obs[t + 1] is the first of a game: the frames from before it are 0.
    """
    obs = np.stack([frames[i : len(frames) - 3 + i] for i in range(4)], -1)
    for t in np.flatnonzero(begins) + 1:
        for age in range(3):
            obs[t + age : t + age + 1, ..., : 3 - age] = 0  # frames of the game before
    return obs


class Segments:
    """The last segments of N games, in the run directory: a file an iteration, never changed.

    A file is deleted once neither the last checkpoint nor the one before can sample from it. So a
    run that is killed finds what its checkpoint needs, and writes again the files that came after.
    """

    def __init__(self, args, num_actions, run):
        T, self.args, self.run = args.num_steps, args, run
        self.most = args.buffer_size // T  # segments
        self.iteration = self.saved = 0  # of the newest file, and at the last checkpoint
        self.record = np.dtype(  # of a game
            [("frames", "u1", (T + 4, 84, 84)), ("begins", "?", (T,)), ("actions", "i8", (T,))]
            + [("rewards", "f4", (T,)), ("dones", "f4", (T,)), ("mu", "f4", (T, num_actions))]
        )

    def path(self, iteration):
        return self.run.dir / "replay" / f"{iteration}.zip"

    def window(self, iteration):
        """The iterations whose segments it samples from."""
        return range(max(1, iteration - self.most + 1), iteration + 1)

    def check_disk(self):
        """Raises Stop(2) unless the replay will fit the disk."""
        files = min(self.most + 2 * self.args.checkpoint_every, self.args.num_iterations)
        needed = files * self.args.num_envs * self.record.itemsize / COMPRESSION / 1e9
        if self.args.run_dir:  # what is there needs no more room
            needed -= sum(x.stat().st_size for x in self.path(1).parent.glob("*.zip")) / 1e9
        free = shutil.disk_usage(next(x for x in self.path(1).parents if x.is_dir())).free / 1e9
        if needed > free:
            text = f"may need {needed:,.1f} GB of disk, {free:,.1f} GB are free"
            raise Stop(2, f"--buffer-size {self.args.buffer_size}: {text}")

    def store(self, iteration, obs, **columns):
        """Keeps what update() takes."""
        records = np.zeros(self.args.num_envs, self.record)
        records["frames"][:, :4] = obs[0].permute(0, 3, 1, 2).cpu()
        records["frames"][:, 4:] = obs[1:, ..., 3].transpose(0, 1).cpu()
        begins = (obs[1:, ..., :3] != obs[:-1, ..., 1:]).flatten(2).any(-1)
        for name, x in dict(columns, begins=begins).items():
            records[name] = x.transpose(0, 1).cpu()
        self.path(iteration).parent.mkdir(exist_ok=True)
        with ZipFile(self.path(iteration), "w", ZIP_DEFLATED, compresslevel=1) as file:
            for n, record in enumerate(records):
                file.writestr(str(n), record.tobytes())
        self.iteration = iteration

    def sample(self, rng):
        """A segment of each game, as store() had it, independently and evenly chosen."""
        records = np.zeros(self.args.num_envs, self.record)
        for n, i in enumerate(rng.choice(self.window(self.iteration), len(records))):
            with ZipFile(self.path(i)) as file:
                records[n] = np.frombuffer(file.read(str(n)), self.record)[0]
        obs = np.stack([restack(x["frames"], x["begins"]) for x in records], 1)
        names = "actions", "rewards", "dones", "mu"
        columns = [records[name].swapaxes(0, 1).copy() for name in names]
        return [torch.from_numpy(x).to(device_of(self.args)) for x in (obs, *columns)]

    def state_dict(self):
        """Before a checkpoint: brings new files to the disk, removes those that none can need."""
        for i in range(self.saved + 1, self.iteration + 1):
            with open(self.path(i), "rb+") as file:  # Windows brings no other to the disk
                os.fsync(file.fileno())
        for path in self.path(1).parent.glob("*.zip"):
            if int(path.stem) < self.window(self.saved).start:
                path.unlink()
        self.saved = self.iteration
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        """Goes on from a checkpoint. Raises ValueError if a file is missing that it may need."""
        self.iteration = self.saved = i = state["iteration"]
        missing = [path for path in map(self.path, self.window(i)) if not path.exists()]
        if missing and i < self.args.num_iterations:
            raise ValueError(f"{missing[0]} is missing")

    def remove(self):
        """Deletes the files."""
        shutil.rmtree(self.path(1).parent, ignore_errors=True)
