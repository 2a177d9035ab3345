# The main job on a CPU, with the versions of constraints.txt; its run folders are in /home/user/runs.
#
#   docker build --tag locallearn .
#   docker run --rm --mount type=volume,src=runs,dst=/home/user/runs locallearn
#   docker run --rm locallearn strategy=dgl model=mlp epochs=1
#   docker run --rm --entrypoint locallearn locallearn list strategies
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# PyTorch for CPUs is a tenth of the size of that on PyPI. What it needs comes from PyPI, with the next step.
COPY constraints.txt /source/
RUN pip install --no-deps --constraint /source/constraints.txt \
    --index-url https://download.pytorch.org/whl/cpu torch torchvision

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
COPY conf /source/conf
RUN pip install --constraint /source/constraints.txt /source

RUN useradd --create-home --uid 1000 user && install --directory --owner=user /home/user/runs
USER 1000:1000
WORKDIR /home/user
ENTRYPOINT ["python", "-m", "locallearn"]
CMD ["strategy=dgl", "model=vgg16"]
