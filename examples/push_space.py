"""Make a Space of a model on the Hub: python examples/push_space.py org/name --model org/model"""

import argparse

from ddim_hf.app.space import push_space
from ddim_hf.command_line import run


def main():
    parser = argparse.ArgumentParser(description="Push the page of a model as a Hugging Face Space, in one commit.")
    parser.add_argument("repo_id", help="org/name of the Space; made where it does not exist")
    parser.add_argument("--model", required=True, help="its id on the Hub")
    parser.add_argument("--package", help="a requirement that brings ddim_hf (default: the package's files go up too)")
    parser.add_argument("--private", action="store_true", default=None, help="where the Space is made by this push")
    parser.add_argument("--token", help="with write access; default: that of `hf auth login` or HF_TOKEN")
    print(f"pushed to {push_space(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    run(main)
