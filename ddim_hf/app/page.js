// The slider over a strip of images: the column that it chooses is shown in large.
function ddim_choose(slider) {
  const strip = slider.closest(".strip"), column = Number(slider.value);
  strip.querySelectorAll(".reel").forEach((row, i) => {
    const chosen = row.children[column], figure = strip.querySelectorAll(".large figure")[i];
    figure.querySelector("img").src = chosen.src;
    figure.querySelector("img").alt = figure.querySelector("figcaption").textContent = chosen.alt;
    [...row.children].forEach((image) => image.classList.toggle("chosen", image === chosen));
  });
  slider.setAttribute("aria-valuetext", strip.querySelector("figcaption").textContent);
}
